"""Stops an `up`, and its preview, before anything is made. `destroy` and `refresh` pass: they run no step of it."""

from __future__ import annotations

from collections.abc import Sequence

import pulumi

from infra.changes import Remembered, meaning, remembered
from infra.config import Config
from infra.errors import PreflightError


def gate(config: Config, faults: Sequence[str]) -> pulumi.Resource:
    """What everything else depends on: it remembers the configuration, and with faults it cannot be made or changed."""

    def check(args: pulumi.ResourceHookArgs) -> None:
        before: Remembered = args.old_inputs["input"] if args.old_inputs else remembered(config)
        found = meaning(config.project, config.stack, before, remembered(config))
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
