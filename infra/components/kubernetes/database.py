"""Postgres in the cluster: one pod on a volume of its own."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import DATABASE, Naming
from infra.components.database_urls import DATABASE_NAME, OWNER, PORT, READY
from infra.components.kubernetes.objects import CREATED_IS_ENOUGH, SKIP_AWAIT, metadata, name_of, revision_of, selector
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
    """Without a `storage_class` the cluster's default is used."""

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
            metadata=metadata(args.naming, DATABASE, args.namespace),
            string_data={"POSTGRES_PASSWORD": args.password},
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stringData", "data"]),
        )
        claim = k8s.core.v1.PersistentVolumeClaim(
            "database-volume",
            # Not awaited: many classes bind at the first pod alone, and the wait for the pod says what is wrong.
            metadata=metadata(args.naming, DATABASE, args.namespace, fixed, SKIP_AWAIT),
            spec=k8s.core.v1.PersistentVolumeClaimSpecArgs(
                access_modes=["ReadWriteOnce"],
                resources=k8s.core.v1.VolumeResourceRequirementsArgs(requests={"storage": args.storage_size}),
                storage_class_name=args.storage_class,
            ),
            opts=pulumi.ResourceOptions.merge(
                None if args.protect else bound_to(args.freed),
                pulumi.ResourceOptions(
                    parent=self,
                    protect=args.protect,
                    ignore_changes=["spec.storageClassName"],  # a change would replace the volume by an empty one
                ),
            ),
        )
        self.volume = claim.metadata.apply(lambda metadata: str(metadata.uid))
        pods = k8s.apps.v1.StatefulSet(
            "database",
            # Differs for another claim: the StatefulSet was stopped for that, and has to be scaled up again.
            metadata=metadata(
                args.naming,
                DATABASE,
                args.namespace,
                fixed,
                {**CREATED_IS_ENOUGH, f"{args.naming.project}/volume": self.volume},
            ),
            spec=k8s.apps.v1.StatefulSetSpecArgs(
                service_name=fixed,
                replicas=1,
                pod_management_policy="Parallel",  # a pod that never became ready is replaced too (kubernetes#67250)
                selector=selector(args.naming, DATABASE),
                template=k8s.core.v1.PodTemplateSpecArgs(
                    metadata=k8s.meta.v1.ObjectMetaArgs(labels=args.naming.labels(DATABASE)),
                    spec=self._pod(name_of(secret), name_of(claim)),
                ),
            ),
            opts=child,
        )
        service = k8s.core.v1.Service(
            "database-service",
            metadata=metadata(args.naming, DATABASE, args.namespace, fixed, SKIP_AWAIT),
            spec=k8s.core.v1.ServiceSpecArgs(
                selector=args.naming.selector(DATABASE),
                ports=[k8s.core.v1.ServicePortArgs(name="postgres", port=PORT, target_port=PORT)],
            ),
            opts=child,
        )
        ready = once_ready("database", revision_of(pods), args.waits.ready, child)
        self.host = pulumi.Output.all(name_of(service), args.namespace, ready.id).apply(  # known once a pod is ready
            lambda known: f"{known[0]}.{known[1]}.svc"
        )
        self.register_outputs({"host": self.host})

    def _pod(self, secret: pulumi.Output[str], claim: pulumi.Output[str]) -> k8s.core.v1.PodSpecArgs:
        stop = ["pg_ctl", "stop", "--mode", "fast", "--pgdata", DATA]
        container = k8s.core.v1.ContainerArgs(
            name="postgres",
            image=self._args.image,
            env=[
                k8s.core.v1.EnvVarArgs(name="POSTGRES_USER", value=OWNER),
                k8s.core.v1.EnvVarArgs(name="POSTGRES_DB", value=DATABASE_NAME),
                k8s.core.v1.EnvVarArgs(name="PGDATA", value=DATA),
                from_secret("POSTGRES_PASSWORD", secret),
            ],
            ports=[k8s.core.v1.ContainerPortArgs(name="postgres", container_port=PORT)],
            startup_probe=_probe(period_seconds=2, failure_threshold=900),  # a crash recovery takes long
            readiness_probe=_probe(period_seconds=5),
            liveness_probe=_probe(period_seconds=20, failure_threshold=6),
            # SIGTERM alone would wait for every client to leave.
            lifecycle=k8s.core.v1.LifecycleArgs(
                pre_stop=k8s.core.v1.LifecycleHandlerArgs(exec_=k8s.core.v1.ExecActionArgs(command=stop))
            ),
            resources=resources("250m", "512Mi", "2", "2Gi"),
            security_context=container_security(),
            volume_mounts=[
                k8s.core.v1.VolumeMountArgs(name="data", mount_path=VOLUME),
                k8s.core.v1.VolumeMountArgs(name="run", mount_path="/var/run/postgresql"),
                k8s.core.v1.VolumeMountArgs(name="tmp", mount_path="/tmp"),
                k8s.core.v1.VolumeMountArgs(name="shm", mount_path="/dev/shm"),
            ],
        )
        kept = k8s.core.v1.PersistentVolumeClaimVolumeSourceArgs(claim_name=claim)
        return k8s.core.v1.PodSpecArgs(
            automount_service_account_token=False,
            enable_service_links=False,
            image_pull_secrets=pull_secrets(self._args.image_pull_secret),
            security_context=pod_security(USER),
            termination_grace_period_seconds=60,
            containers=[container],
            volumes=[
                k8s.core.v1.VolumeArgs(name="data", persistent_volume_claim=kept),
                _empty_dir("run", "16Mi"),
                _empty_dir("tmp", "64Mi"),
                _empty_dir("shm", "256Mi", medium="Memory"),
            ],
        )


def _probe(*, period_seconds: int, failure_threshold: int | None = None) -> k8s.core.v1.ProbeArgs:
    return k8s.core.v1.ProbeArgs(
        exec_=k8s.core.v1.ExecActionArgs(command=READY),
        timeout_seconds=5,
        period_seconds=period_seconds,
        failure_threshold=failure_threshold,
    )


def _empty_dir(name: str, size: str, medium: str | None = None) -> k8s.core.v1.VolumeArgs:
    return k8s.core.v1.VolumeArgs(
        name=name, empty_dir=k8s.core.v1.EmptyDirVolumeSourceArgs(medium=medium, size_limit=size)
    )
