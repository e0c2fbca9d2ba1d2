"""Two namespaces: the app's, and the sandboxes'."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.kubernetes_pods import CONTROLLER, Place, name_of

RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}{suffix}": value
    for mode in ("enforce", "audit", "warn")
    for suffix, value in (("", "restricted"), ("-version", "latest"))
}


@dataclass(frozen=True)
class NamespacesArgs:
    """Their names; `create` false: they are there, and stay as they are. `protect`: the app's holds the database."""

    place: Place
    app: str
    sandboxes: str
    create: bool
    protect: bool


class Namespaces(pulumi.ComponentResource):
    """The names, known once the namespaces are there."""

    app: pulumi.Output[str]
    sandboxes: pulumi.Output[str]

    def __init__(self, name: str, args: NamespacesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Namespaces", name, None, opts)
        self._args = args
        self.app = self._namespace("app-namespace", args.app, protect=args.protect)
        self.sandboxes = self._namespace("sandbox-namespace", args.sandboxes, protect=False)
        self.register_outputs({"app": self.app, "sandboxes": self.sandboxes})

    def _namespace(self, resource: str, name: str, *, protect: bool) -> pulumi.Output[str]:
        if not self._args.create:
            return pulumi.Output.from_input(name)
        made = k8s.core.v1.Namespace(
            resource,
            metadata={"name": name, "labels": {**self._args.place.labels(CONTROLLER), **RESTRICTED}},
            opts=pulumi.ResourceOptions(parent=self, protect=protect),
        )
        return name_of(made)
