"""The stack on a Kubernetes cluster: a database, controllers, and sandboxes in a namespace of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

import pulumi

from infra.components.database_urls import (
    CONTROLLER,
    DATABASE_NAME,
    OWNER,
    PORT,
    REQUESTER,
    database_url,
    example_request,
    psql,
    with_login,
)
from infra.components.images import HTTP_PORT, Images, ImagesArgs
from infra.components.kubernetes.app import App, AppArgs, Pod
from infra.components.kubernetes.credentials import Credentials, CredentialsArgs
from infra.components.kubernetes.database import Database, DatabaseArgs
from infra.components.kubernetes.migration import Migration, MigrationArgs
from infra.components.kubernetes.namespaces import Namespaces, NamespacesArgs
from infra.components.kubernetes.network import Network, NetworkArgs
from infra.components.kubernetes.pod_defaults import Place
from infra.components.kubernetes.provider import cluster_provider
from infra.components.kubernetes.quota import Limits, LimitsArgs
from infra.components.kubernetes.rbac import Access, AccessArgs
from infra.components.passwords import Passwords
from infra.config import Config
from infra.config.changes import whereabouts
from infra.ending.hooks import Ending, before_deletion, bound_to, first_deleted, without_controllers
from infra.ending.kubernetes import KubernetesEnd, Where
from infra.ending.sweep import sweep
from infra.preflight.cluster import Cluster
from infra.waiting.cluster import ClusterWaits


@dataclass(frozen=True)
class Reach:
    """How the database is reached by each login, and a line that asks it for a sandbox."""

    owner: pulumi.Output[str]
    controller: pulumi.Output[str]
    requester: pulumi.Output[str]
    host: pulumi.Output[str]
    port: pulumi.Output[int]
    volume: pulumi.Output[str] | None  # of a database in the cluster
    example: str


def prod(
    config: Config, cluster: Cluster, passed: pulumi.Resource, first: pulumi.ResourceOptions, waits: ClusterWaits
) -> dict[str, pulumi.Input[Any]]:
    """Makes it all, after what it has to pass; returns the stack's outputs. `first`: what a new stack has to pass."""
    if config.kube_context is None:
        words = f"the cluster of the context in use, {cluster.context}, is taken for this stack's"
        pulumi.log.warn(f"{config.project}:kubeContext is not set: {words}")
    after = pulumi.ResourceOptions(depends_on=[passed])
    swept = bound_to(before_deletion("sweep", partial(sweep, config, cluster.context)))  # all else is gone then
    noted = pulumi.ResourceOptions.merge(pulumi.ResourceOptions.merge(after, first), swept)
    passwords = Passwords("passwords", config.database_password, noted)
    after = pulumi.ResourceOptions(depends_on=[passed, passwords])
    provider = cluster_provider(cluster, config.stack, passed)
    inside = pulumi.ResourceOptions.merge(after, pulumi.ResourceOptions(providers=[provider]))
    place = Place(config.project, config.stack)
    pull = config.image_pull_secret
    ending = Ending(config.stack, config.drain_seconds, config.protect_database)
    end = KubernetesEnd(Where(place, cluster.context, config.namespace, config.sandbox_namespace), ending)

    images = Images("images", _images(config), after)
    spaces = Namespaces(
        "namespaces",
        NamespacesArgs(
            place,
            config.namespace,
            config.sandbox_namespace,
            config.create_namespaces,
            config.protect_database,
            cluster.left,
            cluster.context,
        ),
        inside,
    )
    databases: list[pulumi.Resource] = []
    freed = pulumi.ResourceHook("free-volume", end.free_volume)
    if config.database_url is not None:
        reach = _existing(config.database_url, passwords, config.stack)
    else:
        database = _database(config, place, spaces, passwords, waits, freed, inside)
        reach = _own(config, cluster.context, database, passwords)
        databases.append(database)
    network = Network("network", _network(config, place, spaces, reach, end), inside)
    limits = [_limits(config, place, spaces, inside)] if cluster.limits else []
    access = Access("access", AccessArgs(place, spaces.app, spaces.sandboxes), inside)
    migration = Migration(
        "migration",
        MigrationArgs(
            place,
            spaces.app,
            images.app,
            reach.owner,
            passwords.controller,
            passwords.requester,
            reach.volume,
            pull,
            after=[network],
            waits=waits,
        ),
        inside,
    )
    secrets = Credentials(
        "credentials",
        CredentialsArgs(
            place, spaces.app, reach.controller, reach.requester, config.requester_namespaces, after=[migration]
        ),
        inside,
    )
    pod = Pod(place, images.app, access.account, secrets.controller, _settings(config, spaces, images), pull)
    drains = pod.drains(config.drain_seconds)
    needed = [migration, access, *limits]
    # A drain needs what it waits for, and sandboxes may not outlive their policies.
    drained = without_controllers(partial(end.drain_alone, drains), [*needed, network, secrets, *databases])
    app = App(
        "app",
        AppArgs(
            pod=pod,
            namespace=spaces.app,
            replicas=config.replicas,
            autoscaled=cluster.autoscaler is not None,
            secret_digest=secrets.controller_digest,
            after=[*needed, drained],
            waits=waits,
        ),
        inside,
    )
    first_deleted(ending, app, partial(end.drain, drains), whereabouts(config))
    return {
        "database_url": reach.owner,
        "requester_database_url": reach.requester,
        "database_host": pulumi.Output.concat(reach.host, ":", reach.port.apply(str)),
        "health_url": pulumi.Output.concat("http://", app.host, "/healthz"),
        "metrics_url": pulumi.Output.concat("http://", app.host, "/metrics"),
        "app_image": images.app,
        "sandbox_image": images.sandbox,
        "namespace": spaces.app,
        "sandbox_namespace": spaces.sandboxes,
        "requester_secret_name": secrets.requester,
        "example_request": reach.example,
    }


def _images(config: Config) -> ImagesArgs:
    return ImagesArgs(
        config.stack,
        config.app_image,
        config.sandbox_image,
        config.registry,
        config.pull_registry,
        config.registry_username,
        config.registry_password,
    )


def _settings(config: Config, spaces: Namespaces, images: Images) -> dict[str, pulumi.Input[str]]:
    options = dict(config.job_options)
    if config.image_pull_secret is not None:
        options.setdefault("imagePullSecrets", [config.image_pull_secret])
    return {
        "HTTP_PORT": str(HTTP_PORT),
        "SANDBOX_BACKEND": "kubernetes",
        "SANDBOX_IMAGE": images.sandbox,
        "SANDBOX_JOB_OPTIONS": json.dumps(options, sort_keys=True),
        "SANDBOX_MAX_RUNNING": str(config.max_running),
        "SANDBOX_NAMESPACE": spaces.sandboxes,
    }


def _limits(config: Config, place: Place, spaces: Namespaces, opts: pulumi.ResourceOptions) -> Limits:
    args = LimitsArgs(place, spaces.sandboxes, config.quota_cpu, config.quota_memory, config.quota_pods)
    return Limits("limits", args, opts)


def _network(config: Config, place: Place, spaces: Namespaces, reach: Reach, end: KubernetesEnd) -> NetworkArgs:
    return NetworkArgs(
        place=place,
        namespace=spaces.app,
        sandbox_namespace=spaces.sandboxes,
        requester_namespaces=config.requester_namespaces,
        monitoring_namespace=config.monitoring_namespace,
        api_server_cidrs=config.api_server_cidrs,
        egress_cidrs=config.egress_cidrs,
        database_cidrs=config.database_cidrs,
        database_port=reach.port,
        end=end,
    )


def _database(
    config: Config,
    place: Place,
    spaces: Namespaces,
    passwords: Passwords,
    waits: ClusterWaits,
    freed: pulumi.ResourceHook,
    opts: pulumi.ResourceOptions,
) -> Database:
    args = DatabaseArgs(
        place=place,
        namespace=spaces.app,
        image=config.postgres_image,
        password=passwords.owner,
        storage_class=config.storage_class,
        storage_size=config.storage_size,
        protect=config.protect_database,
        image_pull_secret=config.image_pull_secret,
        waits=waits,
        freed=freed,
    )
    return Database("database", args, opts)


def _existing(owner: pulumi.Output[str], passwords: Passwords, stack: str) -> Reach:
    return Reach(
        owner,
        with_login(owner, CONTROLLER, passwords.controller),
        with_login(owner, REQUESTER, passwords.requester),
        pulumi.Output.unsecret(owner.apply(lambda url: str(urlsplit(url).hostname))),
        pulumi.Output.unsecret(owner.apply(lambda url: urlsplit(url).port or PORT)),
        None,
        example_request(psql(stack)),
    )


def _own(config: Config, context: str, database: Database, passwords: Passwords) -> Reach:
    pod = f"--namespace {config.namespace} exec statefulset/{config.name}-database"
    return Reach(
        database_url(OWNER, passwords.owner, database.host),
        database_url(CONTROLLER, passwords.controller, database.host),
        database_url(REQUESTER, passwords.requester, database.host),
        database.host,
        pulumi.Output.from_input(PORT),
        database.volume,
        example_request(
            f"kubectl --context {quote(context)} {pod} -- psql --username {REQUESTER} --dbname {DATABASE_NAME}"
        ),
    )
