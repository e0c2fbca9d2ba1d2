"""What every pod of the app's namespace has in common: the whole of PodSecurity `restricted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONTROLLER_USER = 10001  # of images/app


def pod_security(user: int) -> dict[str, Any]:
    """A pod's security context."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """A container's security context."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def resources(cpu: str, memory: str, most_cpu: str, most_memory: str) -> dict[str, Any]:
    """Requests and limits."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": most_cpu, "memory": most_memory}}


def pull_secrets(name: str | None) -> Sequence[Mapping[str, str]]:
    """What images are pulled with."""
    return [{"name": name}] if name else []


def from_secret(variable: str, secret: Any) -> dict[str, Any]:
    """A container's variable whose value a secret has under the same name."""
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": variable}}}
