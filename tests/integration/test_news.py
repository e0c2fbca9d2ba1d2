"""What is new while a step is under way, or while a sandbox waits out a failed one, is acted on at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from controller.errors import TransientEngineError
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Phase
from controller.reconcile.controller import Controller
from tests.support.control import Table, control, table
from tests.support.memory_backend import Fault, MemoryBackend, MemoryEngine

HOUR = 3600.0


PATIENT = {"backoff": (HOUR, HOUR)}  # what backs off stays away for longer than any test waits


class Gated(MemoryBackend):
    """One verb, which ends when the test says so, and then fails; `does`: it is done before."""

    def __init__(self, engine: MemoryEngine, verb: str, *, does: bool = False) -> None:
        super().__init__(engine, list_seconds=0.1)
        self.verb, self.does, self.calls = verb, does, Counter[str]()
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    async def _gate(self, verb: str, do: Callable[[], Awaitable[Any]]) -> Any:
        self.calls[verb] += 1
        if verb != self.verb or self.calls[verb] > 1:
            return await do()
        if self.does:
            await do()
        self.reached.set()
        await self.go_on.wait()
        raise TransientEngineError(f"the engine has no answer to {verb}")

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Perhaps gated."""
        made: ObservedRun | None = await self._gate("create", lambda: super(Gated, self).create(launch, look=look))
        return made

    async def release(self, key: Key, run_uid: str) -> None:
        """Perhaps gated."""
        await self._gate("release", lambda: super(Gated, self).release(key, run_uid))

    async def kill(self, key: Key, run_uid: str) -> None:
        """Perhaps gated."""
        await self._gate("kill", lambda: super(Gated, self).kill(key, run_uid))


def on(url: str, verb: str, test: Callable[[Table, Gated, Controller], Awaitable[None]], *, does: bool = False) -> None:
    """Runs a test's coroutine beside one controller."""

    async def go() -> None:
        backend = Gated(MemoryEngine(), verb, does=does)
        async with table(url) as asked, control(url, backend, PATIENT) as controller:
            await test(asked, backend, controller)
        assert all(count == 1 for count in backend.engine.starts.values())

    asyncio.run(go())


async def reached(backend: Gated) -> None:
    """Waits until the gated verb is under way."""
    async with asyncio.timeout(20):
        await backend.reached.wait()


async def until(true: Callable[[], bool]) -> None:
    """Waits for a condition in this process."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


class Counted(MemoryBackend):
    """Counts its listings."""

    listings = 0

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Counts, and tells."""
        async for sight in super().observe():
            self.listings += isinstance(sight, Listing)
            yield sight


def test_a_run_that_ends_while_its_release_gets_no_answer_is_recorded_at_once(database: str) -> None:
    async def test(asked: Table, backend: Gated, controller: Controller) -> None:
        sandbox = await asked.insert("exit 3")
        await reached(backend)
        await until(lambda: {run.seen.phase for run in backend.engine.runs.values()} == {Phase.ENDED})
        backend.go_on.set()
        row = await asked.cleaned(sandbox)
        assert (row["state"], row["exit_code"]) == ("failed", 3)

    on(database, "release", test, does=True)


def test_a_run_that_ends_while_its_kill_gets_no_answer_is_recorded_at_once(database: str) -> None:
    async def test(asked: Table, backend: Gated, controller: Controller) -> None:
        sandbox = await asked.insert("sleep 600")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        await asked.cancel(sandbox)
        await reached(backend)
        backend.go_on.set()
        row = await asked.cleaned(sandbox)
        assert (row["state"], row["message"]) == ("cancelled", "cancelled while it ran")

    on(database, "kill", test, does=True)


def test_a_cancel_while_a_step_is_under_way_that_fails_is_taken_at_once(database: str) -> None:
    async def test(asked: Table, backend: Gated, controller: Controller) -> None:
        sandbox = await asked.insert()
        await reached(backend)
        await asked.cancel(sandbox)
        await until(lambda: any(each.row.cancelled for each in controller.tracker.sandboxes.values()))
        backend.go_on.set()
        row = await asked.cleaned(sandbox)
        assert row["state"] == "cancelled"
        assert not backend.engine.starts

    on(database, "create", test)


def test_a_cancel_while_it_waits_out_a_failed_step_is_taken_at_once(database: str) -> None:
    async def test(asked: Table, backend: Gated, controller: Controller) -> None:
        sandbox = await asked.insert()
        await reached(backend)
        backend.go_on.set()
        await asked.until(sandbox, lambda row: row["waiting"] is not None)
        await asked.cancel(sandbox)
        assert (await asked.cleaned(sandbox))["state"] == "cancelled"
        assert backend.calls["create"] == 1

    on(database, "create", test)


def test_a_run_found_missing_while_a_step_is_under_way_is_recorded_at_once(database: str) -> None:
    async def test(asked: Table, backend: Gated, controller: Controller) -> None:
        sandbox = await asked.insert("sleep 600")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        await asked.cancel(sandbox)
        await reached(backend)
        backend.engine.runs.clear()  # and nobody is told: only a listing shows it
        await until(lambda: any(each.missing for each in controller.tracker.sandboxes.values()))
        backend.go_on.set()
        row = await asked.cleaned(sandbox)
        assert row["state"] == "cancelled"
        assert "its object is gone" in row["message"]

    on(database, "kill", test)


def test_a_row_that_another_controller_ended_while_a_step_was_under_way_is_cleaned_at_once(database: str) -> None:
    async def test(asked: Table, backend: Gated, controller: Controller) -> None:
        sandbox = await asked.insert("sleep 600")
        await reached(backend)
        end = "update sandboxes set state = 'failed', reason = 'Killed', finished_at = now() where id = %s"
        await asked.rows(end, sandbox)
        await until(lambda: any(each.row.state.terminal for each in controller.tracker.sandboxes.values()))
        backend.go_on.set()
        await asked.cleaned(sandbox)

    on(database, "release", test)


@pytest.mark.parametrize("verb", ["create", "release"])
def test_a_step_that_fails_without_news_is_not_taken_again_at_once(database: str, verb: str) -> None:
    async def go() -> None:
        engine, calls = MemoryEngine(), Counter[str]()

        def busy(called: str, key: Key) -> Fault | None:
            calls[called] += 1
            return Fault.BUSY if called == verb else None

        backend = Counted(engine, busy, list_seconds=0.05)
        async with table(database) as asked, control(database, backend, PATIENT):
            sandbox = await asked.insert()
            await asked.until(sandbox, lambda row: row["waiting"] is not None)
            since = backend.listings
            await until(lambda: backend.listings > since + 20)
        assert calls[verb] == 1

    asyncio.run(go())
