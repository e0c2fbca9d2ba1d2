"""Hooks that the Pulumi engine calls before it deletes a resource, and the values that it hands to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pulumi

Act = Callable[[], Awaitable[None]]


def before_deletion(name: str, act: Act) -> pulumi.ResourceHook:
    """A hook that acts, under a name that `pulumi destroy` shows if it lacks --run-program.

    Every program must register it, even one without the resource: the state records the resource with its hook.
    """

    async def run(args: pulumi.ResourceHookArgs) -> None:
        await act()

    return pulumi.ResourceHook(name, run)


def bound_to(*hooks: pulumi.ResourceHook) -> pulumi.ResourceOptions:
    """Options with which these hooks run before the resource is deleted."""
    return pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_delete=list(hooks)))


async def stashed(inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The fields that a Stash holds, in clear, from the inputs that a hook gets; empty if it holds no fields."""
    found = await pulumi.Output.from_input((inputs or {}).get("input")).future()
    return found if isinstance(found, Mapping) else {}


async def former_metadata(args: pulumi.ResourceHookArgs) -> Mapping[str, Any]:
    """The metadata of a cluster's object as it is, not as the program declares it now."""
    found: Mapping[str, Any] = await pulumi.Output.from_input((args.old_inputs or {})["metadata"]).future() or {}
    return found


async def value_if_known(output: pulumi.Output[Any]) -> Any:
    """An output's value; None if something that it is derived from was never created."""
    return await output.future() if await output.is_known() else None
