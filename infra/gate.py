"""Stops an `up`, and its preview, before anything is made. `destroy` and `refresh` pass: they run no step of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi

from infra.changes import Meaning, meaning, remembered
from infra.config import Config
from infra.errors import PreflightError


def gate(config: Config, faults: Sequence[str]) -> pulumi.Resource:
    """What everything else depends on: it remembers the configuration, and with faults it cannot be made or changed."""

    async def check(args: pulumi.ResourceHookArgs) -> None:
        found = Meaning()
        if args.old_inputs:
            found = meaning(config, await _in_clear(args.old_inputs), await _in_clear(args.new_inputs))
        for words in found.warnings:
            pulumi.log.warn(words)
        if faults or found.faults:
            raise PreflightError.of([*found.faults, *faults])

    hook = pulumi.ResourceHook("preflight", check, pulumi.ResourceHookOptions(on_dry_run=True))
    return pulumi.Stash(
        "configuration",
        input={**remembered(config), "faults": list(faults)},
        opts=pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])),
    )


async def _in_clear(inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What was remembered, as the engine hands it to a hook."""
    known: Mapping[str, Any] | None = await pulumi.Output.from_input((inputs or {})["input"]).future()
    return known or {}
