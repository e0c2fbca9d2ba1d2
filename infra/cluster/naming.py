"""The names and labels of a stack's objects on a cluster."""

from __future__ import annotations

from dataclasses import dataclass

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

    def selector(self, component: str) -> dict[str, str]:
        """The labels by which a component's pods are selected."""
        return {NAME: self.project, INSTANCE: self.stack, COMPONENT: component}
