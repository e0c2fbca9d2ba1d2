"""What every pod of the app's namespace has in common: labels, and the whole of PodSecurity `restricted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pulumi

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
MANAGED_BY = "app.kubernetes.io/managed-by"
CONTROLLER, DATABASE, MIGRATION = "controller", "database", "migration"
REVISION = ("namespace", "name", "uid", "generation")  # of a workload's metadata: they change with what it is to be
CONTROLLER_USER = 10001  # of images/app
REPLACE_UNREADY = {"pulumi.com/replaceUnready": "true"}  # an annotation: one that failed is made anew
SKIP_AWAIT = {"pulumi.com/skipAwait": "true"}  # an annotation: made is enough
# An annotation: made is enough, and yet a delete waits for the pods to end, which SKIP_AWAIT would not.
MADE_IS_ENOUGH = {"pulumi.com/waitFor": "jsonpath={.metadata.uid}"}


@dataclass(frozen=True)
class Place:
    """What a stack's objects are called."""

    project: str
    stack: str

    @property
    def name(self) -> str:
        """What fixed names begin with."""
        return f"{self.project}-{self.stack}"

    def labels(self, component: str) -> dict[str, str]:
        """Those that every object bears."""
        return {**self.selector(component), MANAGED_BY: "pulumi"}

    def metadata(
        self,
        component: str,
        namespace: Any,
        name: str | None = None,
        annotations: Mapping[str, pulumi.Input[str]] | None = None,
    ) -> Any:
        """An object's metadata; without a name Pulumi gives it one that changes with what it may not change."""
        given = {"name": name, "namespace": namespace, "labels": self.labels(component), "annotations": annotations}
        return {key: value for key, value in given.items() if value is not None}

    def selector(self, component: str) -> dict[str, str]:
        """Those by which a component's pods are found."""
        return {NAME: self.project, INSTANCE: self.stack, COMPONENT: component}


def name_of(made: Any) -> pulumi.Output[str]:
    """An object's name, known once it is there."""
    found: pulumi.Output[str] = made.metadata.apply(lambda metadata: str(metadata.name))
    return found


def revision_of(made: Any) -> dict[str, Any]:
    """Which workload is meant, and at which revision: what a wait takes."""
    found: dict[str, Any] = {key: made.metadata.apply(partial(_field, key)) for key in REVISION}
    return {"kind": made.kind, **found}


def _field(key: str, metadata: Any) -> Any:
    return getattr(metadata, key)


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
