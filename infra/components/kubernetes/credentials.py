"""The secrets with the database URL of each login."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, Naming
from infra.components.kubernetes.objects import metadata, name_of

URL = "DATABASE_URL"


@dataclass(frozen=True)
class CredentialsArgs:
    """The requester's secret is copied to `requester_namespaces`. Everything waits for `after`, which sets the
    passwords in the database."""

    naming: Naming
    namespace: pulumi.Input[str]
    controller_url: pulumi.Output[str]
    requester_url: pulumi.Input[str]
    requester_namespaces: Sequence[str]
    after: Sequence[pulumi.Resource]


class Credentials(pulumi.ComponentResource):
    """The names of the secrets, which stay the same; `controller_digest` differs for other credentials."""

    controller: pulumi.Output[str]
    controller_digest: pulumi.Output[str]
    requester: pulumi.Output[str]

    def __init__(self, name: str, args: CredentialsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Credentials", name, None, opts)
        self._args = args
        self.controller = self._secret("controller-credentials", CONTROLLER, {URL: args.controller_url})
        # In clear: the generated password cannot be found by its digest.
        self.controller_digest = pulumi.Output.unsecret(args.controller_url.apply(_digest))
        asked, fixed = {URL: args.requester_url}, f"{args.naming.name}-requester"
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
            metadata=metadata(args.naming, component, where, name),
            string_data=content,
            opts=pulumi.ResourceOptions(
                parent=self, depends_on=args.after, additional_secret_outputs=["stringData", "data"]
            ),
        )
        return name_of(made)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
