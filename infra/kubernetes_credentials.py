"""The secrets through which each login gets to the database, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.kubernetes_pods import CONTROLLER, MIGRATION, Place, name_of

URL = "DATABASE_URL"


@dataclass(frozen=True)
class CredentialsArgs:
    """`owner_url` is for the migration alone; the requester's goes to `requester_namespaces` too."""

    place: Place
    namespace: pulumi.Input[str]
    owner_url: pulumi.Input[str]
    controller_url: pulumi.Input[str]
    requester_url: pulumi.Input[str]
    controller_password: pulumi.Input[str]
    requester_password: pulumi.Input[str]
    requester_namespaces: Sequence[str]


class Credentials(pulumi.ComponentResource):
    """The names of the secrets. Those of controller and migration change with what they hold."""

    controller: pulumi.Output[str]
    migration: pulumi.Output[str]
    requester: pulumi.Output[str]

    def __init__(self, name: str, args: CredentialsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Credentials", name, None, opts)
        self._args = args
        self.controller = self._secret("controller-credentials", CONTROLLER, {URL: args.controller_url})
        migration = {
            URL: args.owner_url,
            "SANDBOX_CONTROLLER_PASSWORD": args.controller_password,
            "SANDBOX_REQUESTER_PASSWORD": args.requester_password,
        }
        self.migration = self._secret("migration-credentials", MIGRATION, migration)
        asked, fixed = {URL: args.requester_url}, f"{args.place.name}-requester"
        self.requester = self._secret("requester-credentials", "requester", asked, fixed)
        for namespace in args.requester_namespaces:
            self._secret(f"requester-credentials-{namespace}", "requester", asked, fixed, namespace)
        self.register_outputs({"requester": self.requester})

    def _secret(
        self,
        resource: str,
        component: str,
        content: Mapping[str, pulumi.Input[str]],
        name: str | None = None,
        namespace: pulumi.Input[str] | None = None,
    ) -> pulumi.Output[str]:
        args = self._args
        where = args.namespace if namespace is None else namespace
        made = k8s.core.v1.Secret(
            resource,
            metadata=args.place.metadata(component, where, name),
            string_data=content,
            opts=pulumi.ResourceOptions(parent=self, additional_secret_outputs=["stringData", "data"]),
        )
        return name_of(made)
