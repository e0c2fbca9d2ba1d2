"""Brings the database to the image's version, as its owner, before any controller of that image starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import MIGRATION, Naming
from infra.components.images import ENTRYPOINT
from infra.components.kubernetes.objects import CREATED_IS_ENOUGH, REPLACE_UNREADY, name_of, revision_of
from infra.components.kubernetes.pod_defaults import (
    CONTROLLER_USER,
    container_security,
    pod_security,
    pull_secrets,
    resources,
)
from infra.waiting.cluster import ClusterWaits
from infra.waiting.readiness import once_ready


@dataclass(frozen=True)
class MigrationArgs:
    """A new image, URL, password or volume is a new migration. It waits for `after`."""

    naming: Naming
    namespace: pulumi.Input[str]
    image: pulumi.Input[str]
    owner_url: pulumi.Input[str]
    controller_password: pulumi.Input[str]
    requester_password: pulumi.Input[str]
    volume: pulumi.Input[str] | None
    image_pull_secret: str | None
    after: Sequence[pulumi.Resource]
    waits: ClusterWaits


class Migration(pulumi.ComponentResource):
    """A Job that has succeeded; its template cannot be changed, so each has a name of its own."""

    def __init__(self, name: str, args: MigrationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Migration", name, None, opts)
        secret = k8s.core.v1.Secret(
            "migration-credentials",
            metadata=args.naming.metadata(MIGRATION, args.namespace),
            string_data={
                "DATABASE_URL": args.owner_url,
                "SANDBOX_CONTROLLER_PASSWORD": args.controller_password,
                "SANDBOX_REQUESTER_PASSWORD": args.requester_password,
            },
            immutable=True,  # other content is another secret, and so another Job
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stringData", "data"]),
        )
        container = {
            "name": MIGRATION,
            "image": args.image,
            "command": ENTRYPOINT,
            "args": ["migrate"],
            "envFrom": [{"secretRef": {"name": name_of(secret)}}],
            "resources": resources("50m", "64Mi", "500m", "256Mi"),
            "terminationMessagePolicy": "FallbackToLogsOnError",  # the pod says what the migration said
            "securityContext": container_security(),
        }
        pod = {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "imagePullSecrets": pull_secrets(args.image_pull_secret),
            "securityContext": pod_security(CONTROLLER_USER),
            "containers": [container],
        }
        marked = {} if args.volume is None else {"annotations": {f"{args.naming.project}/volume": args.volume}}
        spec: Any = {
            "backoffLimit": 2,  # network policies and names may take a moment to reach a new pod: 30 s of trials
            "activeDeadlineSeconds": 300,
            "template": {"metadata": {"labels": args.naming.labels(MIGRATION), **marked}, "spec": pod},
        }
        job = k8s.batch.v1.Job(
            MIGRATION,
            metadata=args.naming.metadata(
                MIGRATION, args.namespace, annotations={**REPLACE_UNREADY, **CREATED_IS_ENOUGH}
            ),
            spec=spec,
            opts=pulumi.ResourceOptions(parent=self, depends_on=args.after),
        )
        once_ready("migration", revision_of(job), args.waits.ready, pulumi.ResourceOptions(parent=self))
        self.register_outputs({})
