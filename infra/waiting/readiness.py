"""Waits for readiness: each reason is reported as it comes, and a permanent one ends the wait at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from infra.errors import NotReadyError

PAUSE_SECONDS = 0.5  # between two looks
AGAIN_SECONDS = 15.0  # before other words for the same kind of reason are reported: a log may grow with each look
GONE = "it no longer exists: `pulumi up --refresh --run-program` creates it again"
REMIND_SECONDS = 60.0  # after which a reason that still holds is reported again


@dataclass(frozen=True)
class Unready:
    """Why something is not ready: a kind of reason, and the words for it, which may change while the kind stays.

    In seconds: the reason is reported once its kind has lasted for `quiet`; the wait ends after `patience`.
    """

    kind: str
    words: str
    patience: float = math.inf
    quiet: float = 0.0


Look = Callable[[], Awaitable[Unready | None]]  # None: it is ready
Wait = Callable[[Mapping[str, Any]], Awaitable[None]]


def once_ready(
    name: str, subject: pulumi.Input[Mapping[str, Any]], wait: Wait, opts: pulumi.ResourceOptions
) -> pulumi.Stash:
    """A resource that exists only once the subject was found ready.

    `subject` says what to wait for, and changes with everything that may end its readiness. A hook waits: it runs only
    if `subject` is new, not in a preview, a refresh or a destroy; after a wait that failed it runs again.
    """

    async def ready(args: pulumi.ResourceHookArgs) -> None:
        await wait((args.new_inputs or {})["input"])

    hook = pulumi.ResourceHook(f"wait for the {name}", ready)
    hooks = pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])
    merged = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(hooks=hooks))
    return pulumi.Stash(f"{name}-ready", input=subject, opts=merged)


async def until_ready(
    what: str,
    look: Look,
    longest: float,
    *,
    now: Callable[[], float] = time.monotonic,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    tell: Callable[[str], None] | None = None,
) -> None:
    """Looks every PAUSE_SECONDS, for `longest` seconds at most. Raises NotReadyError with the last reason."""
    began = since = told_at = now()
    kind, told = "", ("", "")  # the kind and words that were reported last
    while (found := await look()) is not None:
        at = now()
        if found.kind != kind:
            kind, since = found.kind, at
        if at - since >= found.patience or at - began >= longest:
            after = f" after {at - began:.0f} s" if at - began >= REMIND_SECONDS else ""
            raise NotReadyError(f"{what} is not ready{after}: {found.words}")
        if at - since >= found.quiet and _is_news(told, found, at - told_at):
            (tell or pulumi.log.info)(f"waiting for {what} ({at - began:.0f} s): {found.words}")
            told, told_at = (found.kind, found.words), at
        await pause(PAUSE_SECONDS)


def _is_news(told: tuple[str, str], found: Unready, seconds: float) -> bool:
    kind, words = told
    return found.kind != kind or seconds >= (REMIND_SECONDS if found.words == words else AGAIN_SECONDS)
