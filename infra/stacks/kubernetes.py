"""The stack on a Kubernetes cluster: a database, controllers, and sandboxes in a namespace of their own."""

from __future__ import annotations

import json
from functools import partial
from shlex import quote
from typing import Any

import pulumi

from infra.cluster.naming import Naming
from infra.components.database_urls import DATABASE_NAME, REQUESTER, DatabaseEndpoints, example_request, psql
from infra.components.images import HTTP_PORT, Images, ImagesArgs
from infra.components.kubernetes.app import App, AppArgs, ControllerPod
from infra.components.kubernetes.credentials import Credentials, CredentialsArgs
from infra.components.kubernetes.database import Database, DatabaseArgs
from infra.components.kubernetes.migration import Migration, MigrationArgs
from infra.components.kubernetes.namespaces import Namespaces, NamespacesArgs
from infra.components.kubernetes.network import Network, NetworkArgs
from infra.components.kubernetes.provider import cluster_provider
from infra.components.kubernetes.quota import Limits, LimitsArgs
from infra.components.kubernetes.rbac import Access, AccessArgs
from infra.components.passwords import Passwords
from infra.config import Config
from infra.config.changes import whereabouts
from infra.ending.drain import Ending
from infra.ending.kubernetes import KubernetesEnd
from infra.ending.kubernetes_objects import Location
from infra.ending.order import first_deleted, without_controllers
from infra.ending.sweep import sweep
from infra.hooks import before_deletion, bound_to
from infra.preflight.cluster import Cluster
from infra.waiting.cluster import ClusterWaits


def kubernetes_stack(
    config: Config, cluster: Cluster, gate: pulumi.Resource, first: pulumi.ResourceOptions, waits: ClusterWaits
) -> dict[str, pulumi.Input[Any]]:
    """Creates the stack behind its gate, and returns its outputs.

    `first` are the options of the resource that only a new stack creates.
    """
    if config.kube_context is None:
        words = f"the cluster of the context in use, {cluster.context}, is taken for this stack's"
        pulumi.log.warn(f"{config.project}:kubeContext is not set: {words}")
    naming = Naming(config.project, config.stack)
    ending = Ending(config.stack, config.drain_seconds, config.protect_database)
    end = KubernetesEnd(Location(naming, cluster.context, config.namespace, config.sandbox_namespace), ending)

    passwords = Passwords("passwords", config.database_password, _deleted_last(config, cluster, gate, first))
    behind_gate = pulumi.ResourceOptions(depends_on=[gate, passwords])
    provider = cluster_provider(cluster, config.stack, gate)
    opts = pulumi.ResourceOptions.merge(behind_gate, pulumi.ResourceOptions(providers=[provider]))
    images = Images(
        "images",
        ImagesArgs(
            stack=config.stack,
            app_image=config.app_image,
            sandbox_image=config.sandbox_image,
            registry=config.registry,
            pull_registry=config.pull_registry,
            username=config.registry_username,
            password=config.registry_password,
        ),
        behind_gate,
    )
    namespaces = Namespaces(
        "namespaces",
        NamespacesArgs(
            naming=naming,
            app=config.namespace,
            sandboxes=config.sandbox_namespace,
            create=config.create_namespaces,
            protect=config.protect_database,
            left=cluster.left,
            context=cluster.context,
        ),
        opts,
    )
    freed = pulumi.ResourceHook("free-volume", end.free_volume)  # registered by every program: the state may name it
    database: Database | None = None
    if config.database_url is None:
        database = Database(
            "database",
            DatabaseArgs(
                naming=naming,
                namespace=namespaces.app,
                image=config.postgres_image,
                password=passwords.owner,
                storage_class=config.storage_class,
                storage_size=config.storage_size,
                protect=config.protect_database,
                image_pull_secret=config.image_pull_secret,
                waits=waits,
                freed=freed,
            ),
            opts,
        )
        endpoints = DatabaseEndpoints.own(passwords, database.host)
    else:
        endpoints = DatabaseEndpoints.existing(config.database_url, passwords)
    network = Network(
        "network",
        NetworkArgs(
            naming=naming,
            namespace=namespaces.app,
            sandbox_namespace=namespaces.sandboxes,
            requester_namespaces=config.requester_namespaces,
            monitoring_namespace=config.monitoring_namespace,
            api_server_cidrs=config.api_server_cidrs,
            egress_cidrs=config.egress_cidrs,
            database_cidrs=config.database_cidrs,
            database_port=endpoints.port,
            end=end,
        ),
        opts,
    )
    needed: list[pulumi.Resource] = []
    if cluster.limits:
        quota = LimitsArgs(
            naming=naming,
            namespace=namespaces.sandboxes,
            cpu=config.quota_cpu,
            memory=config.quota_memory,
            pods=config.quota_pods,
        )
        needed.append(Limits("limits", quota, opts))
    access = Access("access", AccessArgs(naming, namespaces.app, namespaces.sandboxes), opts)
    migration = Migration(
        "migration",
        MigrationArgs(
            naming=naming,
            namespace=namespaces.app,
            image=images.app,
            owner_url=endpoints.owner,
            controller_password=passwords.controller,
            requester_password=passwords.requester,
            volume=database.volume if database else None,
            image_pull_secret=config.image_pull_secret,
            after=[network],
            waits=waits,
        ),
        opts,
    )
    credentials = Credentials(
        "credentials",
        CredentialsArgs(
            naming=naming,
            namespace=namespaces.app,
            controller_url=endpoints.controller,
            requester_url=endpoints.requester,
            requester_namespaces=config.requester_namespaces,
            after=[migration],
        ),
        opts,
    )
    pod = ControllerPod(
        naming=naming,
        image=images.app,
        account=access.account,
        secret=credentials.controller,
        settings=_settings(config, namespaces, images),
        image_pull_secret=config.image_pull_secret,
    )
    drains = pod.drains(config.drain_seconds)
    needed += [migration, access]
    # A drain needs what it waits for, and sandboxes may not outlive their policies.
    kept = [*needed, network, credentials, *([database] if database else [])]
    drained = without_controllers(partial(end.drain_alone, drains), kept)
    app = App(
        "app",
        AppArgs(
            pod=pod,
            namespace=namespaces.app,
            replicas=config.replicas,
            autoscaled=cluster.autoscaler is not None,
            secret_digest=credentials.controller_digest,
            after=[*needed, drained],
            waits=waits,
        ),
        opts,
    )
    first_deleted(ending, app, partial(end.drain, drains), whereabouts(config))

    return {
        "database_url": endpoints.owner,
        "requester_database_url": endpoints.requester,
        "database_host": pulumi.Output.concat(endpoints.host, ":", endpoints.port.apply(str)),
        "health_url": pulumi.Output.concat("http://", app.host, "/healthz"),
        "metrics_url": pulumi.Output.concat("http://", app.host, "/metrics"),
        "app_image": images.app,
        "sandbox_image": images.sandbox,
        "namespace": namespaces.app,
        "sandbox_namespace": namespaces.sandboxes,
        "requester_secret_name": credentials.requester,
        "example_request": example_request(_psql_of(config, cluster)),
    }


def _deleted_last(
    config: Config, cluster: Cluster, gate: pulumi.Resource, first: pulumi.ResourceOptions
) -> pulumi.ResourceOptions:
    """Options of what everything else depends on: before its deletion the leftovers of an interrupted `up` go."""
    swept = bound_to(before_deletion("sweep", partial(sweep, config, cluster.context)))
    behind_gate = pulumi.ResourceOptions(depends_on=[gate])
    return pulumi.ResourceOptions.merge(pulumi.ResourceOptions.merge(behind_gate, first), swept)


def _settings(config: Config, namespaces: Namespaces, images: Images) -> dict[str, pulumi.Input[str]]:
    """The controller's settings."""
    options = dict(config.job_options)
    if config.image_pull_secret is not None:
        options.setdefault("imagePullSecrets", [config.image_pull_secret])
    return {
        "HTTP_PORT": str(HTTP_PORT),
        "SANDBOX_BACKEND": "kubernetes",
        "SANDBOX_IMAGE": images.sandbox,
        "SANDBOX_JOB_OPTIONS": json.dumps(options, sort_keys=True),
        "SANDBOX_MAX_RUNNING": str(config.max_running),
        "SANDBOX_NAMESPACE": namespaces.sandboxes,
    }


def _psql_of(config: Config, cluster: Cluster) -> str:
    """A command line of psql that reaches the database from here: inside its own pod, or with an existing one's URL."""
    if config.database_url is not None:
        return psql(config.stack)
    pod = f"--namespace {config.namespace} exec statefulset/{config.name}-database"
    return f"kubectl --context {quote(cluster.context)} {pod} -- psql --username {REQUESTER} --dbname {DATABASE_NAME}"
