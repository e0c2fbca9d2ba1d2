"""The names and labels of a stack's objects on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
MANAGED_BY = "app.kubernetes.io/managed-by"
CONTROLLER, DATABASE, MIGRATION = "controller", "database", "migration"  # components
DESTROY_MANAGER = "ci-fixer-sandbox-destroy"  # the manager of the fields that a destroy changes


@dataclass(frozen=True)
class Naming:
    """The names and labels of one stack's objects."""

    project: str
    stack: str

    @property
    def name(self) -> str:
        """The text that fixed names begin with."""
        return f"{self.project}-{self.stack}"

    def labels(self, component: str) -> dict[str, str]:
        """The labels of every object of a component."""
        return {**self.selector(component), MANAGED_BY: "pulumi"}

    def metadata(
        self,
        component: str,
        namespace: Any,
        name: str | None = None,
        annotations: Mapping[str, pulumi.Input[str]] | None = None,
    ) -> Any:
        """An object's metadata. Without a name Pulumi generates one, and another one for each replacement."""
        given = {"name": name, "namespace": namespace, "labels": self.labels(component), "annotations": annotations}
        return {key: value for key, value in given.items() if value is not None}

    def selector(self, component: str) -> dict[str, str]:
        """The labels by which a component's pods are selected."""
        return {NAME: self.project, INSTANCE: self.stack, COMPONENT: component}
