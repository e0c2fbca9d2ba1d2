"""The end of a stack: what runs ends first, then its controllers, and only then its isolation and its database go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi

from infra.errors import EndRefused

Act = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Ending:
    """`seconds` that a drain may take, 0: none; `protect`: the database may not go, so that nothing does."""

    stack: str
    seconds: int
    protect: bool

    def refused(self, why: str) -> EndRefused:
        """Why what runs could not be ended, and what to do."""
        key = f"pulumi config set --stack {self.stack} drainSeconds 0"
        return EndRefused(
            f"sandboxes may still run, and their network, rights and database stay: {why}; mend that and destroy again"
            f" (`pulumi up --stack {self.stack}` brings back what is gone already), or leave them to their fate: {key}"
        )

    def forgotten(self) -> EndRefused:
        """That something is gone of which a drain is made, and what to do."""
        again = f"pulumi up --refresh --run-program --stack {self.stack}"
        return self.refused(f"what drains is not known any more: {again}")

    def elsewhere(self, before: Mapping[str, str], now: Mapping[str, str]) -> str:
        """That keys were changed since the last `up`, so that what runs is not where they say."""
        words = [
            f"{key} was {was!r} when `up` last came to its end, and is {now[key]!r}" for key, was in before.items()
        ]
        if "name" in before:
            back = "name the project and the stack as they were (pulumi stack rename)"
        else:
            back = " && ".join(f"pulumi config set --stack {self.stack} {key} {was!r}" for key, was in before.items())
            back = f"destroy with what was: {back}, or `pulumi up --stack {self.stack}` first"
        return f"nothing was deleted: {'; '.join(words)}; {back}"


def typed_here(words: str, inside: str) -> str:
    """A drain's words: the commands in them are for a controller's own container, which `inside` reaches from here."""
    return words.replace("`python -m controller ", f"`{inside} python -m controller ")


def last_said(lines: Sequence[str]) -> str:
    """Why a drain left something, each reason once: what it said while it waited only where it was cut off."""
    told = [line for line in lines if line.startswith("drain: ")] or lines
    final = [line for line in told if not line.startswith("drain: waiting, ")] or told
    return " ".join(list(dict.fromkeys(final))[-3:])


def before_deletion(name: str, act: Act) -> pulumi.ResourceHook:
    """A hook of that name, which `pulumi destroy` says where it lacks --run-program.

    Every program makes it, also one that does not make the resource any more: the state has that with its hook.
    """

    async def run(args: pulumi.ResourceHookArgs) -> None:
        await act()

    return pulumi.ResourceHook(name, run)


def bound_to(*hooks: pulumi.ResourceHook) -> pulumi.ResourceOptions:
    """Options with which these run before the resource is deleted."""
    return pulumi.ResourceOptions(hooks=pulumi.ResourceHookBinding(before_delete=list(hooks)))


def first_deleted(ending: Ending, app: pulumi.Resource, drain: Act, where: Mapping[str, str]) -> None:
    """Drains while all is there still: it is made last, and nothing but the stack's end deletes it.

    `where` are the keys that say where sandboxes run. One that was changed since the last `up` would end others.
    """

    async def run(args: pulumi.ResourceHookArgs) -> None:
        before = await stashed(args.old_inputs)
        changed = {key: before[key] for key, value in where.items() if before.get(key, value) != value}
        if changed:
            raise EndRefused(ending.elsewhere(changed, where))
        await drain()

    protection, drain_first = _protection(ending), pulumi.ResourceHook("drain", run)
    options = bound_to(*([protection] if ending.protect else []), drain_first)
    last = pulumi.ResourceOptions(depends_on=[app])
    pulumi.Stash("end", input=dict(where), opts=pulumi.ResourceOptions.merge(options, last))


def without_controllers(drain: Act, after: Sequence[pulumi.Resource]) -> pulumi.Resource:
    """What controllers depend on: it is deleted once they are, before all of `after`, and drains then.

    Nothing claims rows any more. An `up` that is killed has made it before any controller.
    """
    options = bound_to(before_deletion("drain-again", drain))
    made = pulumi.ResourceOptions(depends_on=list(after))
    return pulumi.Stash("controllers-gone", input="", opts=pulumi.ResourceOptions.merge(options, made))


def _protection(ending: Ending) -> pulumi.ResourceHook:
    """Pulumi would refuse too, but with --skip-preview only once all that is not protected is gone."""

    async def refuse(args: pulumi.ResourceHookArgs) -> None:
        key = f"pulumi config set --stack {ending.stack} protectDatabase false && pulumi up --stack {ending.stack}"
        raise EndRefused(f"the database is protected, and nothing was deleted: {key}, then destroy")

    return pulumi.ResourceHook("protection", refuse, pulumi.ResourceHookOptions(on_dry_run=True))


async def stashed(inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What a Stash remembers, in clear, as the engine hands it to a hook; nothing of one that remembered no fields."""
    found = await pulumi.Output.from_input((inputs or {}).get("input")).future()
    return found if isinstance(found, Mapping) else {}


async def known(output: pulumi.Output[Any]) -> Any:
    """Its value, None where it has none: what it is made of was never there."""
    return await output.future() if await output.is_known() else None
