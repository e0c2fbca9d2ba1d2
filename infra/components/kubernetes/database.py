"""Postgres in the cluster: one pod on a volume of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import DATABASE, Naming
from infra.components.database_urls import DATABASE_NAME, OWNER, PORT, READY
from infra.components.kubernetes.objects import CREATED_IS_ENOUGH, SKIP_AWAIT, name_of, revision_of
from infra.components.kubernetes.pod_defaults import (
    container_security,
    from_secret,
    pod_security,
    pull_secrets,
    resources,
)
from infra.hooks import bound_to
from infra.waiting.cluster import ClusterWaits
from infra.waiting.readiness import once_ready

USER = 999  # postgres in the image
VOLUME = "/var/lib/postgresql/data"
DATA = f"{VOLUME}/pgdata"  # below it: a volume's root may hold lost+found


@dataclass(frozen=True)
class DatabaseArgs:
    """`storage_class` None: the cluster's default."""

    naming: Naming
    namespace: pulumi.Input[str]
    image: str
    password: pulumi.Input[str]
    storage_class: str | None
    storage_size: str
    protect: bool
    image_pull_secret: str | None
    waits: ClusterWaits
    freed: pulumi.ResourceHook  # before the volume goes


class Database(pulumi.ComponentResource):
    """A database that answers at `host`, with its files on `volume`."""

    host: pulumi.Output[str]
    volume: pulumi.Output[str]

    def __init__(self, name: str, args: DatabaseArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Database", name, None, opts)
        self._args = args
        fixed = f"{args.naming.name}-database"
        child = pulumi.ResourceOptions(parent=self)
        secret = k8s.core.v1.Secret(
            "database-password",
            metadata=args.naming.metadata(DATABASE, args.namespace),
            string_data={"POSTGRES_PASSWORD": args.password},
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stringData", "data"]),
        )
        kept: Any = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": args.storage_size}}}
        if args.storage_class is not None:
            kept["storageClassName"] = args.storage_class
        claim = k8s.core.v1.PersistentVolumeClaim(
            "database-volume",
            # Not awaited: many classes bind at the first pod alone, and the wait for the pod says what is wrong.
            metadata=args.naming.metadata(DATABASE, args.namespace, fixed, SKIP_AWAIT),
            spec=kept,
            opts=pulumi.ResourceOptions.merge(
                None if args.protect else bound_to(args.freed),
                pulumi.ResourceOptions(
                    parent=self,
                    protect=args.protect,
                    ignore_changes=["spec.storageClassName"],  # it cannot change: the volume would be made anew, empty
                ),
            ),
        )
        self.volume = claim.metadata.apply(lambda metadata: str(metadata.uid))
        stateful: Any = {
            "serviceName": fixed,
            "replicas": 1,
            "podManagementPolicy": "Parallel",  # a pod that never became ready is replaced too (kubernetes#67250)
            "selector": {"matchLabels": args.naming.selector(DATABASE)},
            "template": {
                "metadata": {"labels": args.naming.labels(DATABASE)},
                "spec": self._pod(name_of(secret), name_of(claim)),
            },
        }
        pods = k8s.apps.v1.StatefulSet(
            "database",
            # Of another claim: it was stopped for that, and has to be made whole again.
            metadata=args.naming.metadata(
                DATABASE, args.namespace, fixed, {**CREATED_IS_ENOUGH, f"{args.naming.project}/volume": self.volume}
            ),
            spec=stateful,
            opts=child,
        )
        port = {"name": "postgres", "port": PORT, "targetPort": PORT}
        exposed: Any = {"selector": args.naming.selector(DATABASE), "ports": [port]}
        service = k8s.core.v1.Service(
            "database-service",
            metadata=args.naming.metadata(DATABASE, args.namespace, fixed, SKIP_AWAIT),
            spec=exposed,
            opts=child,
        )
        ready = once_ready("database", revision_of(pods), args.waits.ready, child)
        self.host = pulumi.Output.all(name_of(service), args.namespace, ready.id).apply(  # known once a pod is ready
            lambda known: f"{known[0]}.{known[1]}.svc"
        )
        self.register_outputs({"host": self.host})

    def _pod(self, secret: pulumi.Output[str], claim: pulumi.Output[str]) -> dict[str, Any]:
        probe = {"exec": {"command": READY}, "timeoutSeconds": 5}
        container = {
            "name": "postgres",
            "image": self._args.image,
            "env": [
                {"name": "POSTGRES_USER", "value": OWNER},
                {"name": "POSTGRES_DB", "value": DATABASE_NAME},
                {"name": "PGDATA", "value": DATA},
                from_secret("POSTGRES_PASSWORD", secret),
            ],
            "ports": [{"name": "postgres", "containerPort": PORT}],
            "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": 900},  # a crash recovery takes long
            "readinessProbe": {**probe, "periodSeconds": 5},
            "livenessProbe": {**probe, "periodSeconds": 20, "failureThreshold": 6},
            # SIGTERM alone would wait for every client to leave.
            "lifecycle": {"preStop": {"exec": {"command": ["pg_ctl", "stop", "--mode", "fast", "--pgdata", DATA]}}},
            "resources": resources("250m", "512Mi", "2", "2Gi"),
            "securityContext": container_security(),
            "volumeMounts": [
                {"name": "data", "mountPath": VOLUME},
                {"name": "run", "mountPath": "/var/run/postgresql"},
                {"name": "tmp", "mountPath": "/tmp"},
                {"name": "shm", "mountPath": "/dev/shm"},
            ],
        }
        return {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "imagePullSecrets": pull_secrets(self._args.image_pull_secret),
            "securityContext": pod_security(USER),
            "terminationGracePeriodSeconds": 60,
            "containers": [container],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
                {"name": "run", "emptyDir": {"sizeLimit": "16Mi"}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
            ],
        }
