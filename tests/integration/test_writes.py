"""What a controller writes: compare-and-set, once, whole, and whatever happens to the connection or a neighbour."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from controller.db.store import Claimed, Store
from controller.db.writes import Ended, MarkCleaned, SetWaiting, WriteBind, WriteRunning
from controller.errors import DatabaseUnavailableError, WriteRejectedError
from controller.protocol.model import Key, ObservedRun, Outcome, Output, Phase, Reason, State, exit_outcome
from tests.support.database import (
    Connection,
    ask,
    at,
    claim,
    clock,
    connect,
    insert,
    insert_many,
    kill_controllers,
    one,
    opened,
    row,
    steps,
    until,
)

BAD = exit_outcome(1)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with opened(database) as store:
        yield store


async def claimed(store: Store, count: int = 1) -> list[Claimed]:
    got = await store.claim(count, 1_000_000, 60)
    assert len(got) == count
    return sorted(got, key=lambda each: each.row.id)


async def bound(store: Store, count: int = 1) -> list[Key]:
    got = await claimed(store, count)
    keys = [each.row.key for each in got]
    done = await asyncio.gather(*(store.bind(WriteBind(each.row.key, 1, "u")) for each in got))
    assert all(done)
    return keys


# Compare and set


async def test_bind_needs_attempt_epoch_state_no_cancel_and_no_other_run(owner: Connection, store: Store) -> None:
    insert(owner)
    [got] = await claimed(store)
    key = got.row.key
    assert not await store.bind(WriteBind(replace(key, attempt=2), 1, "u"))
    assert not await store.bind(WriteBind(key, 2, "u"))
    assert not await store.bind(WriteBind(Key(uuid4(), 1), 1, "u"))
    assert row(owner, key.sandbox_id)["run_uid"] is None
    assert await store.bind(WriteBind(key, 1, "u"))
    assert await store.bind(WriteBind(key, 1, "u"))  # a repeat after a lost reply
    assert not await store.bind(WriteBind(key, 1, "v"))
    owner.execute("update sandboxes set cancel_requested_at = now()")
    assert not await store.bind(WriteBind(key, 1, "u"))
    found = row(owner, key.sandbox_id)
    assert (found["run_uid"], found["state"], found["finished_at"]) == ("u", "launching", None)
    assert found["launched_at"] is not None


async def test_start_needs_attempt_run_and_launching(owner: Connection, store: Store) -> None:
    insert(owner)
    [key] = await bound(store)
    assert not await store.mark_running(WriteRunning(replace(key, attempt=2), "u"))
    assert not await store.mark_running(WriteRunning(key, "v"))
    assert row(owner, key.sandbox_id)["state"] == "launching"
    assert await store.mark_running(WriteRunning(key, "u"))
    assert not await store.mark_running(WriteRunning(key, "u"))
    found = row(owner, key.sandbox_id)
    assert (found["state"], found["lease_until"]) == ("running", None)
    assert found["started_at"] is not None
    assert not await store.bind(WriteBind(key, 1, "u"))
    assert steps(owner, key.sandbox_id) == ["claimed", "bound", "running"]


async def test_an_unbound_row_does_not_start(owner: Connection, store: Store) -> None:
    insert(owner)
    [got] = await claimed(store)
    assert not await store.mark_running(WriteRunning(got.row.key, "u"))
    assert ask(owner, "mark_running", ids=[got.row.id], attempts=[1], run_uids=[None]) == []


async def test_record_needs_attempt_and_run_and_the_first_one_wins(owner: Connection, store: Store) -> None:
    insert(owner)
    [key] = await bound(store)
    for wrong in (Ended(replace(key, attempt=2), "u", BAD), Ended(key, "v", BAD), Ended(key, None, BAD)):
        assert not await store.record(wrong)
    assert await store.record(Ended(key, "u", BAD))
    first = row(owner, key.sandbox_id)
    assert not await store.record(Ended(key, "u", exit_outcome(0)))
    assert not await store.requeue(Ended(key, "u", exit_outcome(0)))
    assert row(owner, key.sandbox_id) == first
    assert (first["state"], first["exit_code"], first["reason"], first["lease_until"]) == (
        "failed",
        1,
        "NonZeroExit",
        None,
    )
    assert one(owner, "select count(*) as n from sandbox_attempts")["n"] == 1


async def test_who_lost_its_lease_does_not_end_what_another_engine_has_by_now(database: str, owner: Connection) -> None:
    made = insert(owner)
    async with opened(database) as store:
        [late] = await store.claim(1, 10, 60.0)
        [taken] = [each for each in await store.take_over(1, 60.0, held=[]) if each.row.id == made]
        assert not await store.record(Ended(late.row.key, None, BAD, epoch=late.row.epoch))
        assert await store.record(Ended(taken.row.key, None, BAD, epoch=taken.row.epoch))


async def test_a_queued_row_is_not_recorded(owner: Connection, store: Store) -> None:
    made = insert(owner)
    assert not await store.record(Ended(Key(made, 1), None, BAD))
    assert not await store.requeue(Ended(Key(made, 1), None, BAD))


async def test_again_counts_a_run_and_starts_the_deadline_anew(owner: Connection, store: Store) -> None:
    insert(owner, max_attempts=2)
    [key] = await bound(store)
    assert await store.mark_running(WriteRunning(key, "u"))
    claimed_at = row(owner, key.sandbox_id)["claimed_at"]
    seen = ObservedRun(key, "u", Phase.ENDED, BAD, started_at=at(1), ended_at=at(2), node="n", image_digest="d")
    assert await store.requeue(Ended(key, "u", BAD, seen, Output(b"out", True), counted=True, delay=3600))
    found = row(owner, key.sandbox_id)
    assert (found["state"], found["attempt"], found["runs"], found["run_uid"]) == ("queued", 2, 1, None)
    assert [
        found[name] for name in ("claimed_at", "launched_at", "started_at", "lease_until", "engine", "claimed_by")
    ] == [None] * 6
    assert found["retry_at"] is not None
    assert found["waiting"] == "attempt 1 ended: NonZeroExit; the next is due"
    assert steps(owner, key.sandbox_id)[-1] == "queued again"
    attempt = one(owner, "select * from sandbox_attempts")
    del attempt["recorded_at"]
    assert attempt == {
        "sandbox_id": key.sandbox_id,
        "attempt": 1,
        "run_uid": "u",
        "state": "failed",
        "exit_code": 1,
        "reason": "NonZeroExit",
        "message": "the command exited with 1",
        "claimed_at": claimed_at,
        "started_at": at(1),
        "ended_at": at(2),
        "output": "out",
        "output_truncated": True,
        "engine": store.engine,
        "node": "n",
        "image_digest": "d",
    }
    assert not await store.requeue(Ended(key, "u", BAD, counted=True))
    assert await store.retry_due() == 0


async def test_again_of_what_never_started_counts_nothing_and_its_deadline_runs_on(
    owner: Connection, store: Store
) -> None:
    insert(owner)
    never = Outcome(State.FAILED, Reason.NOT_STARTED, "never started")
    [key] = await bound(store)
    claimed_at = row(owner, key.sandbox_id)["claimed_at"]
    assert not await store.requeue(Ended(key, "v", never))
    assert not await store.requeue(Ended(key, "u", never, epoch=2))  # in other hands, nobody can know
    assert await store.requeue(Ended(key, "u", never, epoch=1))
    found = row(owner, key.sandbox_id)
    assert (found["state"], found["attempt"], found["runs"], found["claimed_at"]) == ("queued", 2, 0, claimed_at)
    assert await store.retry_due() == 1
    [second] = await claimed(store)
    assert row(owner, second.row.id)["claimed_at"] == claimed_at
    assert one(owner, "select reason from sandbox_attempts")["reason"] == "NotStarted"


async def test_what_is_being_cancelled_is_not_queued_again(owner: Connection, store: Store) -> None:
    insert(owner, max_attempts=2)
    [key] = await bound(store)
    owner.execute("update sandboxes set cancel_requested_at = now()")
    assert not await store.requeue(Ended(key, "u", BAD, counted=True))
    assert one(owner, "select count(*) as n from sandbox_attempts")["n"] == 0
    assert await store.cancelling() == {key.sandbox_id}
    assert await store.record(Ended(key, "u", BAD))
    assert await store.cancelling() == set()


async def test_only_what_has_ended_is_cleaned_and_once(owner: Connection, store: Store) -> None:
    insert(owner)
    [key] = await bound(store)
    assert not await store.mark_cleaned(MarkCleaned(key))
    assert await store.record(Ended(key, "u", BAD))
    assert [each.id for each in await store.owned_rows()] == [key.sandbox_id]
    assert await store.mark_cleaned(MarkCleaned(key))
    assert not await store.mark_cleaned(MarkCleaned(key))
    assert steps(owner, key.sandbox_id) == ["claimed", "bound", "failed", "cleaned"]
    assert await store.owned_rows() == []


async def test_a_wait_is_told_once_and_only_while_it_launches(owner: Connection, store: Store) -> None:
    insert(owner)
    [key] = await bound(store)
    for text in ("no room", "no room", "pulls\0 \ud800", "x" * 5000, "", ""):
        await store.set_waiting(SetWaiting(key, text))
    waits = owner.execute("select detail from sandbox_events where step = 'waiting' order by id").fetchall()
    assert [each["detail"] for each in waits] == ["no room", "pulls\ufffd ?", "x" * 1000, None]
    assert await store.record(Ended(key, "u", BAD))
    assert not await store.set_waiting(SetWaiting(key, "late"))


# Whole or not at all


async def test_outcome_attempt_event_and_notification_come_in_one_transaction(owner: Connection, store: Store) -> None:
    insert(owner)
    [key] = await bound(store)
    owner.execute("listen sandbox_finished")
    owner.execute("alter table sandbox_attempts add constraint broken check (reason <> 'NonZeroExit')")
    before = row(owner, key.sandbox_id)
    with pytest.raises(WriteRejectedError, match=r'the outcome cannot be written: .* constraint "broken"'):
        await store.record(Ended(key, "u", BAD))
    assert row(owner, key.sandbox_id) == before
    assert steps(owner, key.sandbox_id) == ["claimed", "bound"]
    assert list(owner.notifies(timeout=0)) == []
    owner.execute("alter table sandbox_attempts drop constraint broken")
    assert await store.record(Ended(key, "u", BAD, output=Output(b"bye", False)))
    assert [told.payload for told in owner.notifies(timeout=0.5, stop_after=1)] == [str(key.sandbox_id)]
    assert one(owner, "select xmin::text::bigint as x from sandboxes") == one(
        owner, "select xmin::text::bigint as x from sandbox_attempts"
    )
    result = one(owner, "select * from sandbox_results")
    assert (result["state"], result["output"], result["attempts"]) == ("failed", "bye", 1)


@pytest.mark.parametrize(
    ("raw", "text", "truncated"),
    [
        (b"", "", False),
        (b"no newline", "no newline", False),
        (b"a\0b\xff\xfe", "a\ufffdb\ufffd\ufffd", False),
        (b"x" * 2000, "x" * 1024, True),
        (b"\xff" * 1024, "\ufffd" * 341, True),  # what replaces it is longer, and cut
        (("€" * 1000).encode(), "€" * 341, True),
    ],
)
async def test_any_output_can_be_stored(
    raw: bytes, text: str, truncated: bool, database: str, owner: Connection
) -> None:
    insert(owner)
    async with opened(database, output_bytes=1024) as store:
        [key] = await bound(store)
        outcome = Outcome(State.FAILED, Reason.START_FAILED, "engine said \0\ud800" + "x" * 5000)
        seen = ObservedRun(key, "u", Phase.ENDED, outcome, node="n\0", image_digest="\udcff")
        assert await store.record(Ended(key, "u", outcome, seen, Output(raw, False)))
        found = one(owner, "select * from sandbox_attempts")
        assert (found["output"], found["output_truncated"]) == (text, truncated)
        assert found["message"] == ("engine said \ufffd?" + "x" * 5000)[:2000]
        assert (found["node"], found["image_digest"]) == ("n\ufffd", "?")


async def test_no_output_is_not_empty_output(owner: Connection, store: Store) -> None:
    insert_many(owner, 2)
    first, second = await bound(store, 2)
    assert await store.record(Ended(first, "u", BAD))
    assert await store.record(Ended(second, "u", BAD, output=Output(b"", False)))
    found = owner.execute("select id, output from sandbox_results order by id").fetchall()
    assert [each["output"] for each in found] == [None, ""]


async def test_a_row_whose_controller_is_gone_is_adopted_once(database: str, owner: Connection, store: Store) -> None:
    insert_many(owner, 4)
    keys = await bound(store, 4)
    for key in keys[:3]:
        assert await store.mark_running(WriteRunning(key, "u"))
    assert not any(each.orphaned for each in await store.owned_rows())  # `a` is connected
    owner.execute("update sandboxes set claimed_by = 'gone'")
    rows = await store.owned_rows()
    assert all(each.orphaned for each in rows)
    by_id = {each.id: each for each in rows}
    running = {key.sandbox_id for key in keys[:3]}
    held = keys[0].sandbox_id
    with connect(database) as admin, admin.transaction():
        admin.execute("update sandboxes set cancel_requested_at = now() where id = %s", [held])
        assert await store.adopt(rows) == running - {held}  # what launches has its lease; what is locked, its turn
    assert await store.adopt([replace(by_id[held], epoch=2)]) == set()
    assert await store.adopt([by_id[held]]) == {held}
    assert await store.adopt(rows) == set()
    assert {each.claimed_by for each in await store.owned_rows()} == {"a", "gone"}


# Batches


async def test_one_poisoned_item_does_not_fail_the_others(owner: Connection, store: Store) -> None:
    """Be it refused by the database or by the driver on the way there."""
    insert_many(owner, 40)
    keys = await bound(store, 40)
    owner.execute("alter table sandbox_attempts add constraint poison check (exit_code <> 66)")
    far = datetime(9999, 1, 1, tzinfo=UTC)
    items = [Ended(key, "u", BAD) for key in keys]
    items[7] = Ended(keys[7], "u", exit_outcome(66))
    items[20] = Ended(keys[20], "u", exit_outcome(2**40))
    items[30] = Ended(keys[30], "\ud800", BAD)
    items[31] = Ended(keys[31], "u", BAD, ObservedRun(keys[31], "u", Phase.ENDED, BAD, started_at=far))
    done = await asyncio.gather(*map(store.record, items), return_exceptions=True)
    failed = {index for index, answer in enumerate(done) if isinstance(answer, Exception)}
    assert failed == {7, 20, 30}
    assert [answer for index, answer in enumerate(done) if index not in failed] == [True] * 37
    assert await store.record(Ended(keys[7], "u", BAD))  # and the batch lives on


async def test_what_is_ready_together_is_written_together(owner: Connection, store: Store) -> None:
    insert_many(owner, 300)
    keys = await bound(store, 300)
    await asyncio.gather(*(store.record(Ended(key, "u", BAD)) for key in keys))
    written = one(owner, "select count(distinct xmin::text) as n from sandbox_attempts")
    assert written["n"] <= 3


async def test_large_outputs_are_split_over_statements(owner: Connection, store: Store) -> None:
    insert_many(owner, 20)
    keys = await bound(store, 20)
    output = Output(b"x" * (1 << 20), False)
    done = await asyncio.gather(*(store.record(Ended(key, "u", BAD, output=output)) for key in keys))
    assert all(done)
    per_statement = owner.execute("select count(*) as n from sandbox_attempts group by xmin::text").fetchall()
    assert max(each["n"] for each in per_statement) == 7


async def test_two_writes_to_one_row_do_not_meet_in_one_statement(owner: Connection, store: Store) -> None:
    """A step of a past attempt may still be under way when the next one's is due."""
    insert(owner)
    [key] = await bound(store)
    stale = Ended(replace(key, attempt=7), "u", exit_outcome(0))
    answers = await asyncio.gather(*map(store.record, [stale, Ended(key, "u", BAD), Ended(key, "u", exit_outcome(9))]))
    assert answers == [False, True, False]
    assert [each["attempt"] for each in owner.execute("select attempt from sandbox_attempts").fetchall()] == [1]
    assert row(owner, key.sandbox_id)["exit_code"] == 1


async def test_a_requesters_open_transaction_holds_up_nothing_at_all(
    database: str, owner: Connection, store: Store
) -> None:
    """Not even the row whose end it asks for, which is written when it commits."""
    insert_many(owner, 2)
    ended, other = await bound(store, 2)
    with connect(database, "sandbox_requester") as requester, requester.transaction():
        for key in (ended, other):
            assert one(requester, "select sandbox_cancel(%s) as asked", [key.sandbox_id]) == {"asked": True}
        async with asyncio.timeout(0.4):  # below the lock timeout of a controller's session
            assert await store.record(Ended(ended, "u", BAD))
    assert await store.cancelling() == {other.sandbox_id}
    assert row(owner, ended.sandbox_id)["cancel_requested_at"] is None


async def test_an_open_transaction_that_holds_a_row_holds_up_no_other_row(
    database: str, owner: Connection, store: Store
) -> None:
    insert_many(owner, 5)
    keys = await bound(store, 5)
    held = keys[2].sandbox_id
    with connect(database) as admin:
        with admin.transaction():
            admin.execute("update sandboxes set cancel_requested_at = now() where id = %s", [held])
            writes = {key: asyncio.create_task(store.record(Ended(key, "u", BAD))) for key in keys}
            late = writes.pop(keys[2])
            assert await asyncio.gather(*writes.values()) == [True] * 4
            assert not late.done()
        assert await late
    assert row(owner, held)["state"] == "failed"


async def test_an_administrator_never_meets_a_deadlock_of_ours(database: str, owner: Connection, store: Store) -> None:
    """It locks two rows in the wrong order, while a batch has one and wants the other."""
    insert_many(owner, 2)
    first, second = await bound(store, 2)
    cancel = "update sandboxes set cancel_requested_at = now() where id = %s"
    with connect(database) as admin:
        with admin.transaction():
            admin.execute(cancel, [second.sandbox_id])
            writes = [asyncio.create_task(store.record(Ended(key, "u", BAD))) for key in (first, second)]
            await asyncio.to_thread(
                until,
                owner,
                "select exists (select from pg_locks where not granted and locktype = 'transactionid')",
            )
            await asyncio.to_thread(admin.execute, cancel, [first.sandbox_id])
        assert await asyncio.gather(*writes) == [True, True]


async def test_two_controllers_recording_the_same_rows_do_not_deadlock(database: str) -> None:
    async with asyncio.timeout(60), opened(database, "a") as a, opened(database, "b") as b:
        with connect(database) as owner:
            insert_many(owner, 600)
            keys = await bound(a, 600)
            before = one(owner, "select deadlocks as n from pg_stat_database where datname = current_database()")
            forward = [a.record(Ended(key, "u", exit_outcome(0))) for key in keys]
            backward = [b.record(Ended(key, "u", exit_outcome(1))) for key in reversed(keys)]
            done = await asyncio.gather(*(write for pair in zip(forward, backward, strict=True) for write in pair))
            wins = dict.fromkeys(keys, 0)
            for key, won in zip(
                [key for pair in zip(keys, reversed(keys), strict=True) for key in pair], done, strict=True
            ):
                wins[key] += won
            assert set(wins.values()) == {1}  # each row by one of the two
            after = one(owner, "select deadlocks as n from pg_stat_database where datname = current_database()")
            assert before == after
            assert one(owner, "select count(*) as n from sandbox_attempts")["n"] == 600


# Lost connections


async def test_a_write_whose_connection_is_killed_is_done_once(database: str, owner: Connection, store: Store) -> None:
    """Killed before it was done (it waits for a lock), it is repeated; killed after, the repeat finds it done."""
    insert(owner)
    [key] = await bound(store)
    with connect(database) as blocker:
        with blocker.transaction():
            blocker.execute("lock table sandbox_attempts in exclusive mode")
            write = asyncio.create_task(store.record(Ended(key, "u", BAD)))
            waits = "select exists (select from pg_locks where not granted and relation = 'sandbox_attempts'::regclass)"
            await asyncio.to_thread(until, owner, waits)
            kill_controllers(owner)
        assert await write
    kill_controllers(owner)
    assert not await store.record(Ended(key, "u", BAD))
    assert one(owner, "select count(*) as n from sandbox_attempts")["n"] == 1
    assert steps(owner, key.sandbox_id) == ["claimed", "bound", "failed"]


async def test_one_failure_tells_of_every_dead_connection(owner: Connection, store: Store) -> None:
    """After a restart of the server the pool is full of them; a claim must not meet one after another."""
    insert(owner)
    await asyncio.gather(*(store.counts() for _ in range(30)))
    kill_controllers(owner)
    with pytest.raises(DatabaseUnavailableError):
        await store.claim(1, 10, 60)
    assert len(await store.claim(1, 10, 60)) == 1


async def test_a_storm_of_killed_connections_loses_and_doubles_nothing(owner: Connection, store: Store) -> None:
    insert_many(owner, 40)
    got = await claimed(store, 40)
    few, written = asyncio.Semaphore(4), itertools.count(1)

    async def write(done: Awaitable[bool]) -> bool:
        task = asyncio.ensure_future(done)
        await asyncio.sleep(0)  # under way, as those of three others are
        if next(written) % 8 == 0:
            kill_controllers(owner)
        return await task

    async def life(each: Claimed) -> None:
        key = each.row.key
        async with few:
            assert await write(store.bind(WriteBind(key, 1, "u")))
            await write(store.mark_running(WriteRunning(key, "u")))
            await write(store.record(Ended(key, "u", BAD, output=Output(b"x", False))))
            await write(store.mark_cleaned(MarkCleaned(key)))

    await asyncio.gather(*map(life, got))
    counts = one(
        owner,
        "select (select count(*) from sandboxes where state = 'failed' and cleaned_at is not null) as rows,"
        " (select count(*) from sandbox_attempts) as attempts,"
        " (select count(distinct (sandbox_id, step)) from sandbox_events) as steps",
    )
    assert counts == {"rows": 40, "attempts": 40, "steps": 40 * 5}


# Retention


def test_forget_takes_what_is_past_its_retention_a_thousand_at_a_time(owner: Connection) -> None:
    clock(owner, 0)
    insert_many(owner, 1100)
    claim(owner, 1100)
    owner.execute("update sandboxes set state = 'lost', reason = 'Lost', finished_at = sandbox_now()")
    owner.execute(
        "insert into sandbox_attempts (sandbox_id, attempt, state, reason) select id, 1, 'lost', 'Lost' from sandboxes"
    )

    def forgotten(second: float) -> int:
        clock(owner, second)
        [answer] = ask(owner, "forget")
        return int(answer["forgotten"])

    owner.execute("update sandbox_installation set retention_seconds = 100")

    assert forgotten(1000) == 0  # not yet cleaned
    clock(owner, 5)
    owner.execute("update sandboxes set cleaned_at = sandbox_now()")
    assert forgotten(100) == 0
    assert forgotten(100.001) == 1000
    assert forgotten(100.001) == 100
    left = one(owner, "select (select count(*) from sandboxes) + (select count(*) from sandbox_attempts) as n")
    assert left["n"] + one(owner, "select count(*) as n from sandbox_events")["n"] == 0


def test_forget_leaves_what_has_not_ended_and_what_somebody_holds(database: str, owner: Connection) -> None:
    clock(owner, 0)
    held, gone = insert(owner), insert(owner)
    claim(owner)
    insert(owner)
    owner.execute(
        "update sandboxes set state = 'lost', reason = 'Lost', finished_at = sandbox_now(), cleaned_at = sandbox_now()"
        " where state = 'launching'"
    )
    owner.execute("update sandbox_installation set retention_seconds = 1")
    clock(owner, 1000)
    with connect(database) as other, other.transaction():
        other.execute("select from sandboxes where id = %s for key share", [held])
        assert ask(owner, "forget") == [{"forgotten": 1, "kept": 0, "why": []}]
    left: set[UUID] = {each["id"] for each in owner.execute("select id from sandboxes").fetchall()}
    assert gone not in left
    assert len(left) == 2


async def test_a_drain_cancels_everything_and_counts_what_is_left(owner: Connection, store: Store) -> None:
    insert_many(owner, 5)
    await bound(store, 2)
    owner.execute("update sandboxes set retry_at = now() where state = 'queued' and seq %% 2 = 0", [])
    assert await store.unfinished() == {None: 3, store.engine: 2}
    await store.cancel_all()
    assert await store.cancel_queued() == 3
    assert len(await store.cancelling()) == 2
    assert await store.unfinished() == {store.engine: 2}
