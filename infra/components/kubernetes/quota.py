"""How much all sandboxes together may take."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, Naming
from infra.components.kubernetes.objects import metadata


@dataclass(frozen=True)
class LimitsArgs:
    """`cpu` and `memory` are sums of limits; `pods` counts those that have not ended."""

    naming: Naming
    namespace: pulumi.Input[str]
    cpu: str
    memory: str
    pods: int


class Limits(pulumi.ComponentResource):
    """A quota, and the defaults without which it would refuse a pod that names no limits."""

    def __init__(self, name: str, args: LimitsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Limits", name, None, opts)
        named = metadata(args.naming, CONTROLLER, args.namespace, args.naming.name)
        defaults = k8s.core.v1.LimitRange(
            "sandbox-defaults",
            metadata=named,
            spec=k8s.core.v1.LimitRangeSpecArgs(
                limits=[
                    k8s.core.v1.LimitRangeItemArgs(
                        type="Container",
                        default={"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"},
                        default_request={"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "512Mi"},
                    )
                ]
            ),
            opts=pulumi.ResourceOptions(parent=self),
        )
        k8s.core.v1.ResourceQuota(
            "sandbox-quota",
            metadata=named,
            spec=k8s.core.v1.ResourceQuotaSpecArgs(
                hard={"limits.cpu": args.cpu, "limits.memory": args.memory, "pods": str(args.pods)}
            ),
            opts=pulumi.ResourceOptions(parent=self, depends_on=[defaults]),
        )
        self.register_outputs({})
