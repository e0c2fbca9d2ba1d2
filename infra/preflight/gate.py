"""Stops an `up`, and its preview, before anything is created. `destroy` and `refresh` pass: they run no such step."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi

from infra.config import Config
from infra.config.changes import Meaning, meaning, remembered
from infra.errors import PreflightError
from infra.hooks import stashed


def gate(config: Config, faults: Sequence[str]) -> pulumi.Resource:
    """The resource that everything else depends on.

    It keeps the configuration in the state, and with faults it can be neither created nor changed.
    """

    async def check(args: pulumi.ResourceHookArgs) -> None:
        found = Meaning()
        if args.old_inputs:
            found = meaning(config, await stashed(args.old_inputs), await stashed(args.new_inputs))
        for words in found.warnings:
            pulumi.log.warn(words)
        if faults or found.faults:
            raise PreflightError.of([*found.faults, *faults])

    hook = pulumi.ResourceHook("preflight", check, pulumi.ResourceHookOptions(on_dry_run=True))
    options = pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook]))
    return pulumi.Stash("configuration", input={**remembered(config), "faults": list(faults)}, opts=options)


def unless_taken(taken: Sequence[str]) -> pulumi.ResourceOptions:
    """Options of the component that only a new stack creates: it is refused if somebody has the stack's names.

    Everything else but the gate depends on the component, so that it goes last: a `destroy` registers each component
    again that is gone, and would be refused then.
    """

    def check(args: pulumi.ResourceHookArgs) -> None:
        raise PreflightError.of(taken)

    hook = pulumi.ResourceHook("unless-taken", check, pulumi.ResourceHookOptions(on_dry_run=True))
    return pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_create=[hook] if taken else []))
