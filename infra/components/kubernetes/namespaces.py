"""The two namespaces: the app's, and the sandboxes'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, Naming
from infra.components.kubernetes.objects import name_of
from infra.ending.deletions import Deletions
from infra.errors import PreflightError
from infra.hooks import bound_to

RESTRICTED = {
    f"pod-security.kubernetes.io/{mode}{suffix}": value
    for mode in ("enforce", "audit", "warn")
    for suffix, value in (("", "restricted"), ("-version", "latest"))
}


@dataclass(frozen=True)
class NamespacesArgs:
    """The names of both. Without `create` they are there, and stay as they are. `protect` keeps the app's, with the
    database. `left` has the error for each that is to be created and is there.
    """

    naming: Naming
    app: str
    sandboxes: str
    create: bool
    protect: bool
    left: Mapping[str, str]
    context: str


class Namespaces(pulumi.ComponentResource):
    """The names, known once the namespaces are there."""

    app: pulumi.Output[str]
    sandboxes: pulumi.Output[str]

    def __init__(self, name: str, args: NamespacesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Namespaces", name, None, opts)
        self._args = args
        self._watched = pulumi.ResourceHook("watch", Deletions(args.context).watch)
        self.app = self._namespace("app-namespace", args.app, protect=args.protect)
        self.sandboxes = self._namespace("sandbox-namespace", args.sandboxes, protect=False)
        self.register_outputs({"app": self.app, "sandboxes": self.sandboxes})

    def _namespace(self, resource: str, name: str, *, protect: bool) -> pulumi.Output[str]:
        if not self._args.create:
            return pulumi.Output.from_input(name)
        made = k8s.core.v1.Namespace(
            resource,
            metadata=k8s.meta.v1.ObjectMetaArgs(
                name=name, labels={**self._args.naming.labels(CONTROLLER), **RESTRICTED}
            ),
            opts=pulumi.ResourceOptions.merge(
                None if protect else bound_to(self._watched),
                pulumi.ResourceOptions(parent=self, protect=protect, hooks=self._unless_left(name)),
            ),
        )
        return name_of(made)

    def _unless_left(self, name: str) -> pulumi.ResourceHookBinding | None:
        """A hook that refuses the preview too; the provider would let it pass, and only `up` fail."""
        if name not in self._args.left:
            return None

        def check(args: pulumi.ResourceHookArgs) -> None:
            raise PreflightError(self._args.left[name])

        hook = pulumi.ResourceHook(f"namespace-{name}", check, pulumi.ResourceHookOptions(on_dry_run=True))
        return pulumi.ResourceHookBinding(before_create=[hook])
