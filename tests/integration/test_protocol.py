"""The protocol end to end on a real table and a fake engine whose every verb may fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest

from controller.protocol.model import Key, Launch, ObservedRun, Output, Phase
from tests.support.control import Table, control
from tests.support.memory_backend import Fault, MemoryBackend, MemoryEngine


def fails(verb: str, fault: Fault, times: int = 2) -> Callable[[str, Key], Fault | None]:
    """Fails the first calls of one verb."""
    calls: Counter[Key] = Counter()

    def of(called: str, key: Key) -> Fault | None:
        if called != verb:
            return None
        calls[key] += 1
        return fault if calls[key] <= times else None

    return of


@pytest.fixture
def engine() -> Iterator[MemoryEngine]:
    """An engine that must be empty at the end, and have started nothing twice."""
    engine = MemoryEngine()
    yield engine
    assert all(count == 1 for count in engine.starts.values())
    assert not engine.runs


HARMLESS = [
    (verb, fault)
    for verb in ("create", "release", "output", "delete")
    for fault in (Fault.REPLY_LOST, Fault.BUSY, Fault.SLOW, Fault.DOUBLED)
]


@pytest.mark.parametrize(("verb", "fault"), HARMLESS)
async def test_a_fault_of_the_engine_changes_no_outcome(
    database: str, verb: str, fault: Fault, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, fails(verb, fault), 0.2)):
        row = await asked.cleaned(await asked.insert())
    assert (row["state"], row["exit_code"], row["reason"]) == ("failed", 3, "NonZeroExit")
    (result,) = await asked.rows("select output, attempts from sandbox_results")
    assert result == {"output": "hi\n", "attempts": 1}


@pytest.mark.parametrize("verb", ["create", "release"])
async def test_what_the_engine_refuses_fails_with_its_words(
    database: str, verb: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, fails(verb, Fault.REFUSED), 0.2)):
        row = await asked.cleaned(await asked.insert(max_attempts=3))
    assert (row["state"], row["reason"], row["attempt"]) == ("failed", "InvalidRequest", 1)
    assert f"refuses to {verb}" in row["message"]
    assert not engine.starts


async def test_a_run_lost_before_its_release_is_replaced_and_does_not_count(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    gone = iter([Fault.GONE])
    async with control(
        database, MemoryBackend(engine, lambda verb, key: next(gone, None) if verb == "release" else None, 0.2)
    ):
        row = await asked.cleaned(await asked.insert())
    assert (row["state"], row["exit_code"], row["attempt"], row["runs"]) == ("failed", 3, 2, 0)
    attempts = await asked.rows("select reason from sandbox_attempts order by attempt")
    assert [attempt["reason"] for attempt in attempts] == ["NotStarted", "NonZeroExit"]
    assert [key.attempt for key in engine.starts] == [2]


async def test_output_that_is_gone_does_not_hold_up_the_outcome(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, fails("output", Fault.GONE), 0.2)):
        row = await asked.cleaned(await asked.insert())
    assert (row["state"], row["exit_code"]) == ("failed", 3)
    assert (await asked.rows("select output from sandbox_results")) == [{"output": None}]


async def test_output_that_cannot_be_read_does_not_hold_up_the_outcome(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, fails("output", Fault.BUSY, 100), 0.2)):
        row = await asked.cleaned(await asked.insert())
    assert (row["state"], row["exit_code"]) == ("failed", 3)


async def test_a_queued_sandbox_is_cancelled_without_a_start(database: str, asked: Table, engine: MemoryEngine) -> None:
    async with control(database, MemoryBackend(engine), sandbox_max_running=0):
        sandbox = await asked.insert()
        await asked.cancel(sandbox)
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["reason"], row["claimed_at"]) == ("cancelled", "Cancelled", None)
    assert not engine.starts


@pytest.mark.parametrize("verb", ["create", "release"])
async def test_a_cancelled_sandbox_that_waits_for_its_engine_never_starts(
    database: str, verb: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, fails(verb, Fault.BUSY, 10**6), 0.2)):
        sandbox = await asked.insert()
        row = await asked.until(sandbox, lambda row: row["waiting"] is not None)
        assert f"no room to {verb}" in row["waiting"]
        await asked.cancel(sandbox)
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["reason"]) == ("cancelled", "Cancelled")
    assert not engine.starts


async def test_a_running_sandbox_is_ended_by_its_cancel(database: str, asked: Table, engine: MemoryEngine) -> None:
    async with control(database, MemoryBackend(engine, fails("kill", Fault.REPLY_LOST, 1))):
        sandbox = await asked.insert("sleep 600")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        await asked.cancel(sandbox)
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["reason"], row["exit_code"]) == ("cancelled", "Cancelled", None)


async def test_a_run_that_ended_before_its_cancel_keeps_its_result(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, fails("kill", Fault.BUSY, 3))):
        sandbox = await asked.insert("sleep 0.5; exit 9")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        await asked.cancel(sandbox)
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 9)


async def test_what_does_not_start_in_time_ends_and_says_what_it_waited_for(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    busy = MemoryBackend(engine, fails("create", Fault.BUSY, 10**6), 0.2)
    async with control(database, busy, sandbox_start_deadline_seconds=1):
        row = await asked.cleaned(await asked.insert())
    assert (row["state"], row["reason"]) == ("failed", "StartTimeout")
    assert "no room to create" in row["message"]


async def test_a_run_that_ended_badly_is_tried_again_as_often_as_asked(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine)):
        row = await asked.cleaned(await asked.insert(max_attempts=2))
    assert (row["state"], row["exit_code"], row["attempt"], row["runs"]) == ("failed", 3, 2, 1)
    assert sorted(key.attempt for key in engine.starts) == [1, 2]
    attempts = await asked.rows("select attempt, exit_code, output from sandbox_attempts order by attempt")
    assert [tuple(attempt.values()) for attempt in attempts] == [(1, 3, "hi\n"), (2, 3, "hi\n")]


@pytest.mark.parametrize(("told", "reason"), [(True, "Deleted"), (False, "Lost")])
async def test_a_run_without_a_trace_is_lost_and_never_run_again(
    database: str, told: bool, reason: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine, list_seconds=0.2)):
        sandbox = await asked.insert("sleep 600", max_attempts=5)
        row = await asked.until(sandbox, lambda row: row["state"] == "running")
        if told:
            engine.remove(engine.runs[row["run_uid"]])
        else:
            engine.runs.pop(row["run_uid"])
            engine.names.clear()
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["reason"], row["exit_code"], row["attempt"]) == ("lost", reason, None, 1)


async def test_an_object_without_a_row_is_deleted(database: str, engine: MemoryEngine) -> None:
    engine.start(engine.make(Launch(Key(uuid4(), 1), "sleep 600", 900)))
    async with control(database, MemoryBackend(engine, list_seconds=0.2)):
        async with asyncio.timeout(20):
            while engine.runs:
                await asyncio.sleep(0.02)


async def test_the_run_of_a_deleted_row_is_removed(database: str, asked: Table, engine: MemoryEngine) -> None:
    async with control(database, MemoryBackend(engine, list_seconds=0.2)):
        sandbox = await asked.insert("sleep 600")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        await asked.rows("delete from sandboxes where id = %s", sandbox)
        async with asyncio.timeout(20):
            while engine.runs:
                await asyncio.sleep(0.02)


class Paused(MemoryBackend):
    """A controller that is stopped inside one verb, before the engine hears of it, until the test lets it go on."""

    def __init__(self, engine: MemoryEngine, verb: str) -> None:
        super().__init__(engine, list_seconds=0.2)
        self.reached, self.go_on, self.went_on, self._verb = asyncio.Event(), asyncio.Event(), asyncio.Event(), verb

    async def _pause(self, verb: str) -> None:
        if verb == self._verb:
            self.reached.set()
            await self.go_on.wait()

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Pauses, then creates."""
        await self._pause("create")
        try:
            return await super().create(launch, look=look)
        finally:
            self.went_on.set()

    async def release(self, key: Key, run_uid: str) -> None:
        """Pauses, then releases."""
        await self._pause("release")
        await super().release(key, run_uid)

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """Pauses, then reads."""
        await self._pause("output")
        return await super().output(key, run_uid, limit)


@pytest.mark.parametrize("verb", ["create", "release", "output"])
async def test_a_controller_that_sleeps_past_its_lease_and_wakes_starts_nothing_twice(
    database: str, verb: str, asked: Table, engine: MemoryEngine
) -> None:
    zombie = Paused(engine, verb)
    async with control(database, zombie, sandbox_poll_seconds=60):  # it does not look at its leases meanwhile
        sandbox = await asked.insert()
        await asyncio.wait_for(zombie.reached.wait(), 20)
        paused = (await asked.row(sandbox))["claimed_by"]
        expire = "update sandboxes set lease_until = now() where claimed_by = %s and state = 'launching'"
        async with control(database, MemoryBackend(engine, list_seconds=0.2)):
            async with asyncio.timeout(20):  # until the other one has it: the paused one may look once more itself
                while (await asked.row(sandbox))["claimed_by"] == paused and verb != "output":
                    await asked.rows(expire, paused)
                    await asyncio.sleep(0.05)
            await asked.cleaned(sandbox)
        zombie.go_on.set()
        async with asyncio.timeout(20):
            if verb == "create":  # it makes a run that nobody asked for any more
                await zombie.went_on.wait()
            while engine.runs:
                await asyncio.sleep(0.02)
    row = await asked.row(sandbox)
    assert (row["state"], row["exit_code"], row["attempt"]) == ("failed", 3, 1)


async def test_a_controller_that_stops_leaves_runs_running_and_the_next_one_ends_them(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine)):
        sandbox = await asked.insert("sleep 1; exit 6")
        await asked.until(sandbox, lambda row: row["state"] == "running")
    assert [run.seen.phase for run in engine.runs.values()] == [Phase.RUNNING]
    async with control(database, MemoryBackend(engine)):
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 6)


async def test_a_controller_that_stops_hands_its_leases_back(database: str, asked: Table, engine: MemoryEngine) -> None:
    busy = MemoryBackend(engine, fails("create", Fault.BUSY, 10**6))
    async with control(database, busy, sandbox_lease_seconds=3600):
        sandbox = await asked.insert()
        await asked.until(sandbox, lambda row: row["waiting"] is not None)
    async with control(database, MemoryBackend(engine), sandbox_lease_seconds=3600):
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"], row["attempt"]) == ("failed", 3, 1)


async def test_two_controllers_share_the_rows_and_start_each_once(
    database: str, asked: Table, engine: MemoryEngine
) -> None:
    async with control(database, MemoryBackend(engine)), control(database, MemoryBackend(engine)):
        await asked.rows("insert into sandboxes (command) select 'echo hi' from generate_series(1, 300)")
        async with asyncio.timeout(30):
            while await asked.rows("select 1 from sandboxes where cleaned_at is null limit 1"):
                await asyncio.sleep(0.05)
    assert len(engine.starts) == 300


async def test_the_timeline_has_every_step(database: str, asked: Table, engine: MemoryEngine) -> None:
    async with control(database, MemoryBackend(engine)):
        await asked.cleaned(await asked.insert("sleep 0.3"))
    steps = [event["step"] for event in await asked.rows("select step from sandbox_events order by id")]
    assert steps == ["claimed", "bound", "running", "succeeded", "cleaned"]
