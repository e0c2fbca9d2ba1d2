"""The controller's rights: its Role in the sandbox namespace, and its account in the app's."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
import pulumi_kubernetes as k8s

from infra.cluster.naming import CONTROLLER, Naming
from infra.cluster.rights import RBAC, controller_rules
from infra.components.kubernetes.objects import metadata, name_of


@dataclass(frozen=True)
class AccessArgs:
    """`namespace` is the account's; the rights are in `sandbox_namespace`."""

    naming: Naming
    namespace: pulumi.Input[str]
    sandbox_namespace: pulumi.Input[str]


class Access(pulumi.ComponentResource):
    """The controller's account by its name, which has its rights once the component is there."""

    account: pulumi.Output[str]

    def __init__(self, name: str, args: AccessArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("ci-fixer-sandbox:infra:Access", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        account = k8s.core.v1.ServiceAccount(
            "controller-account",
            metadata=metadata(args.naming, CONTROLLER, args.namespace, args.naming.name),
            automount_service_account_token=False,  # the controller's pods ask for it
            opts=child,
        )
        in_sandboxes = metadata(args.naming, CONTROLLER, args.sandbox_namespace, args.naming.name)
        role = k8s.rbac.v1.Role("controller-role", metadata=in_sandboxes, rules=controller_rules(), opts=child)
        # By its id, which a preview does not know before the Role is there: the API server would look the Role up, for
        # whoever has no right to bind any.
        role_name = role.id.apply(lambda known: known.rpartition("/")[2])
        k8s.rbac.v1.RoleBinding(
            "controller-role-binding",
            metadata=in_sandboxes,
            role_ref=k8s.rbac.v1.RoleRefArgs(api_group=RBAC, kind="Role", name=role_name),
            subjects=[k8s.rbac.v1.SubjectArgs(kind="ServiceAccount", name=args.naming.name, namespace=args.namespace)],
            opts=child,
        )
        self.account = name_of(account)
        self.register_outputs({"account": self.account})
