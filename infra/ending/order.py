"""The order of a stack's end: sandboxes end first, then the controllers, then their isolation and database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pulumi

from infra.ending.drain import Ending
from infra.errors import EndRefusedError
from infra.hooks import Act, before_deletion, bound_to, stashed


def first_deleted(ending: Ending, app: pulumi.Resource, drain: Act, where: Mapping[str, str]) -> None:
    """Creates the resource that is deleted first, and drains before that, while everything else is still there.

    `where` are the keys that say where sandboxes run. If one was changed since the last `up`, the drain would end
    others: it is refused.
    """

    async def run(args: pulumi.ResourceHookArgs) -> None:
        before = await stashed(args.old_inputs)
        changed = {key: before[key] for key, value in where.items() if before.get(key, value) != value}
        if changed:
            raise ending.moved(changed, where)
        await drain()

    protection, drain_first = _protection(ending), pulumi.ResourceHook("drain", run)
    options = bound_to(*([protection] if ending.protect else []), drain_first)
    last = pulumi.ResourceOptions(depends_on=[app])
    pulumi.Stash("end", input=dict(where), opts=pulumi.ResourceOptions.merge(options, last))


def without_controllers(drain: Act, after: Sequence[pulumi.Resource]) -> pulumi.Resource:
    """Creates what controllers depend on: it is deleted once they are gone, before all of `after`, and drains again.

    Nothing claims rows any more then. An `up` that is killed has created it before any controller.
    """
    options = bound_to(before_deletion("drain-again", drain))
    depends = pulumi.ResourceOptions(depends_on=list(after))
    return pulumi.Stash("controllers-gone", input="", opts=pulumi.ResourceOptions.merge(options, depends))


def _protection(ending: Ending) -> pulumi.ResourceHook:
    """Refuses at once. Pulumi would refuse too, but with --skip-preview only after what is not protected is gone."""

    async def refuse(args: pulumi.ResourceHookArgs) -> None:
        key = f"pulumi config set --stack {ending.stack} protectDatabase false && pulumi up --stack {ending.stack}"
        raise EndRefusedError(f"the database is protected, and nothing was deleted: {key}, then destroy")

    return pulumi.ResourceHook("protection", refuse, pulumi.ResourceHookOptions(on_dry_run=True))
