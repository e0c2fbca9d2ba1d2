"""`drain`: cancels everything, waits until it has ended, and leaves nothing of this installation on the engine."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import cast

from controller import terminal
from controller.backends.base import Backend
from controller.db.registry import Registry
from controller.db.store import Store
from controller.errors import TransientEngineError
from controller.protocol.model import Listing, ObservedRun
from controller.reconcile.controller import Controller

POLL_SECONDS = 0.2
REPORT_SECONDS = 5.0  # between two lines about what is waited for
LISTINGS = 2  # of the engine, at least: what no row uses is deleted at the second


async def drain(controller: Controller, store: Store, backend: Backend, timeout: float) -> int:
    """End everything; return the exit code: 1 if something is left after `timeout` seconds, which it then names."""
    remaining = _Remaining()
    try:
        async with asyncio.timeout(timeout):
            await _end_rows(controller, store, remaining)
            await _clear_engine(store, backend, remaining)
    except TimeoutError:
        terminal.say(*(f"drain: {words}" for words in remaining.words))
        return 1
    terminal.show("drain: nothing is left")
    return 0


class _Remaining:
    """What is waited for, reported again and again while the wait is long."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._reported = time.monotonic()

    def update(self, words: list[str]) -> None:
        self.words = words
        if time.monotonic() - self._reported >= REPORT_SECONDS:
            self._reported = time.monotonic()
            terminal.say(*(f"drain: waiting, {line}" for line in words))


async def _end_rows(controller: Controller, store: Store, remaining: _Remaining) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(controller.run(stop, claim=False))
    try:
        while True:
            await store.cancel_all()
            controller.wake("update")
            unfinished = await store.unfinished()
            if not unfinished:
                return
            remaining.update(_rows(unfinished, store.engine))
            await asyncio.sleep(POLL_SECONDS)
    finally:
        stop.set()
        await running


def _rows(unfinished: Mapping[str | None, int], here: str) -> list[str]:
    return [f"{count} sandboxes are left {_where(engine, here)}" for engine, count in unfinished.items()]


def _where(engine: str | None, here: str) -> str:
    """Return where rows are left, and what to do about it."""
    if engine is None:
        return "in the queue: another transaction holds them"
    if engine == here:
        return "on this engine"
    words = "if no controller of it will come back, give it up: `python -m controller give-up"
    return f"on engine {engine}: {words} {shlex.quote(engine)}`"


async def _clear_engine(store: Store, backend: Backend, remaining: _Remaining) -> None:
    """Wait for what is being deleted; delete what no row uses, and the marks of controllers that are gone."""
    listings = 0
    while True:
        try:
            names = await _remove(store, backend, await _listing(backend))
            await _remove_marks(store, backend)
        except TransientEngineError as error:
            remaining.update([str(error)])
        else:
            listings += 1
            if listings >= LISTINGS and not names:
                return
            remaining.update([f"{len(names)} that ended are still on this engine: {', '.join(names[:3])}"])
        await asyncio.sleep(POLL_SECONDS)


async def _listing(backend: Backend) -> Listing:
    async with aclosing(cast(AsyncGenerator[Listing | ObservedRun], backend.observe())) as sights:
        async for sight in sights:
            if isinstance(sight, Listing):
                return sight
    raise TransientEngineError("the engine shows no list of what it has")


async def _remove(store: Store, backend: Backend, listing: Listing) -> list[str]:
    """Delete what has no row, or an ended one; return its names. Another controller may have claimed rows since."""
    keys = {seen.key for seen in (*listing.runs, *listing.recorded)} | listing.pending.keys()
    rows = await store.rows([key.sandbox_id for key in keys]) if keys else {}
    over = [key for key in keys if (row := rows.get(key.sandbox_id)) is None or row.state.terminal]
    for key in over:
        await backend.delete(key, None)
    return sorted(key.name for key in over)


async def _remove_marks(store: Store, backend: Backend) -> None:
    if backend.marks is not None:
        connected = {each.name for each in await Registry(store).attending() if each.connected}
        for name in await backend.marks.names() - connected - {store.me}:
            await backend.marks.remove(name)
