"""What every pod of the app's namespace has in common: the whole of PodSecurity `restricted`."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi
from pulumi_kubernetes.core.v1 import (
    CapabilitiesArgs,
    EnvVarArgs,
    EnvVarSourceArgs,
    LocalObjectReferenceArgs,
    PodSecurityContextArgs,
    ResourceRequirementsArgs,
    SeccompProfileArgs,
    SecretKeySelectorArgs,
    SecurityContextArgs,
)

CONTROLLER_USER = 10001  # of images/app


def pod_security(user: int) -> PodSecurityContextArgs:
    """A pod's security context."""
    return PodSecurityContextArgs(
        run_as_non_root=True,
        run_as_user=user,
        run_as_group=user,
        fs_group=user,
        seccomp_profile=SeccompProfileArgs(type="RuntimeDefault"),
    )


def container_security() -> SecurityContextArgs:
    """A container's security context."""
    return SecurityContextArgs(
        allow_privilege_escalation=False,
        capabilities=CapabilitiesArgs(drop=["ALL"]),
        read_only_root_filesystem=True,
    )


def resources(cpu: str, memory: str, most_cpu: str, most_memory: str) -> ResourceRequirementsArgs:
    """A container's requests and limits."""
    return ResourceRequirementsArgs(
        requests={"cpu": cpu, "memory": memory}, limits={"cpu": most_cpu, "memory": most_memory}
    )


def pull_secrets(name: str | None) -> Sequence[LocalObjectReferenceArgs]:
    """The secrets that images are pulled with."""
    return [LocalObjectReferenceArgs(name=name)] if name else []


def from_secret(variable: str, secret: pulumi.Input[str]) -> EnvVarArgs:
    """A container's variable, whose value is in the secret under the same name."""
    return EnvVarArgs(
        name=variable,
        value_from=EnvVarSourceArgs(secret_key_ref=SecretKeySelectorArgs(name=secret, key=variable)),
    )
