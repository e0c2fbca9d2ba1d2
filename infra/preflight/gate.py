"""Stops an `up`, and its preview, before anything is made. `destroy` and `refresh` pass: they run no step of it."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi

from infra.config import Config
from infra.config.changes import Meaning, meaning, remembered
from infra.errors import PreflightError
from infra.hooks import stashed


def gate(config: Config, faults: Sequence[str]) -> pulumi.Resource:
    """What everything else depends on: it remembers the configuration, and with faults it cannot be made or changed."""

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
    """Options of a component that every version's stack has: no new one, where somebody has what would follow it.

    All else depends on it, so that it goes last but for the gate: a destroy makes each component anew that is gone.
    """

    def check(args: pulumi.ResourceHookArgs) -> None:
        raise PreflightError.of(taken)

    hook = pulumi.ResourceHook("unless-taken", check, pulumi.ResourceHookOptions(on_dry_run=True))
    return pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_create=[hook] if taken else []))
