"""Who is claimed, when and by whom: order, shares, limits, leases, and never one row twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID

import psycopg
import pytest

from controller.db.writes import Ended, WriteBind
from controller.errors import DatabaseUnavailableError
from controller.protocol.model import Outcome, Reason, State
from tests.support.database import (
    ENGINE,
    WAITS_FOR_LOCK,
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
    take_over,
    together,
    until,
)


@pytest.fixture
def owner(database: str) -> Iterator[Connection]:
    with connect(database) as connection:
        clock(connection, 0)
        yield connection


def tenants(claimed: list[Any], connection: Connection) -> Counter[str]:
    found = connection.execute("select tenant from sandboxes where id = any(%s)", [[each["id"] for each in claimed]])
    return Counter(each["tenant"] for each in found)


def test_a_claim_takes_priority_first_and_then_age(owner: Connection) -> None:
    made = {(priority, age): insert(owner, priority=priority) for age in range(3) for priority in (0, 5, -5)}
    order = [claim(owner, 1)[0]["id"] for _ in made]
    assert order == [made[priority, age] for priority in (5, 0, -5) for age in range(3)]
    assert claim(owner) == []


def test_a_claim_says_what_is_to_be_run_and_leaves_its_marks(owner: Connection) -> None:
    made = insert(owner, command="make", env='{"A": "1"}', cpu_millis=500, image="alpine", network="egress")
    clock(owner, 7)
    [claimed] = claim(owner)
    assert (claimed["command"], claimed["env"], claimed["cpu_millis"]) == ("make", {"A": "1"}, 500)
    assert (claimed["image"], claimed["network"]) == ("alpine", "egress")
    assert (claimed["claimed_age"], claimed["created_age"]) == (0, 7)
    found = row(owner, made)
    assert (found["state"], found["attempt"], found["epoch"], found["run_uid"]) == ("launching", 1, 1, None)
    assert (found["claimed_by"], found["engine"], found["lease_until"]) == ("a", ENGINE, at(67))
    assert found["claimed_at"] == at(7)
    assert steps(owner, made) == ["claimed"]


def test_shares_follow_the_weights(owner: Connection) -> None:
    owner.execute("insert into sandbox_tenants values ('t0', null, 3), ('t1', null, 1), ('t2', null, 0.5)")
    insert_many(owner, 300, tenants=3)
    shares = tenants(claim(owner, 90), owner)
    assert (shares["t0"], shares["t1"], shares["t2"]) == (60, 20, 10)


def test_a_share_counts_what_runs_already(owner: Connection) -> None:
    for _ in range(4):
        insert(owner, tenant="early")
    claim(owner)
    for _ in range(10):
        insert(owner, tenant="early")
        insert(owner, tenant="late")
    assert tenants(claim(owner, 4), owner) == {"late": 4}
    assert tenants(claim(owner, 4), owner) == {"late": 2, "early": 2}


def test_one_large_tenant_gets_all_that_no_other_wants_in_one_claim(owner: Connection) -> None:
    insert_many(owner, 100)
    insert(owner, tenant="small")
    assert tenants(claim(owner, 50), owner) == {"t0": 49, "small": 1}


def test_limits_of_a_tenant_hold_and_leave_their_room_to_the_others(owner: Connection) -> None:
    owner.execute("insert into sandbox_tenants (name, max_running) values ('t0', 0), ('t1', 2)")
    insert_many(owner, 60, tenants=3)
    assert tenants(claim(owner, 15), owner) == {"t1": 2, "t2": 13}
    assert tenants(claim(owner), owner) == {"t2": 7}
    owner.execute(
        "update sandbox_tenants set max_running = 1 where name = 't1'"
    )  # below what runs: nothing is taken away
    assert claim(owner) == []


def test_max_running_is_over_all_controllers(owner: Connection) -> None:
    insert_many(owner, 10)
    assert len(claim(owner, me="a", max_running=4)) == 4
    assert claim(owner, me="b", max_running=4) == []
    assert claim(owner, max_running=0) == []
    assert len(claim(owner, me="b", max_running=7)) == 3
    assert claim(owner, 0) == []
    assert claim(owner, max_running=3) == []


def test_ties_are_spread_over_the_tenants(owner: Connection) -> None:
    insert_many(owner, 800, tenants=8)
    got: Counter[str] = Counter()
    for _ in range(100):
        with owner.transaction(force_rollback=True):
            got += tenants(claim(owner, 1), owner)
    assert len(got) == 8  # chance of a miss: 8 x (7/8)^100 = 1 in 80,000
    with owner.transaction(force_rollback=True):
        assert set(tenants(claim(owner, 80), owner).values()) == {10}


def test_eight_claimers_at_once_never_go_over_the_limit_and_never_take_a_row_twice(database: str) -> None:
    with connect(database) as owner:
        insert_many(owner, 500, tenants=5)
        owner.execute("insert into sandbox_tenants (name, max_running) values ('t0', 3)")

        def work(me: str) -> list[UUID]:
            mine: list[UUID] = []
            with connect(database, "sandbox_controller") as connection:
                for _ in range(12):
                    mine += [each["id"] for each in claim(connection, 7, me=me, max_running=150)]
                    counts = connection.execute(
                        "select tenant, count(*) as n from sandboxes"
                        " where state in ('launching', 'running') group by tenant"
                    ).fetchall()
                    busy = {each["tenant"]: each["n"] for each in counts}
                    assert sum(busy.values()) <= 150
                    assert busy.get("t0", 0) <= 3
            return mine

        claimed = [one for got in together([partial(work, me) for me in "abcdefgh"]) for one in got]
        assert len(claimed) == len(set(claimed)) == 150


async def test_two_controllers_claim_2000_rows_each_row_once(database: str) -> None:
    async def work(me: str) -> list[tuple[UUID, int]]:
        async with opened(database, me) as store:
            mine: list[tuple[UUID, int]] = []
            while claimed := await store.claim(100, 1_000_000, 60):
                mine += [(each.row.id, each.row.epoch) for each in claimed]
            return mine

    with connect(database) as owner:
        insert_many(owner, 2000, tenants=3)
        one, other = await asyncio.gather(*(work(me) for me in "ab"))
        claimed = one + other
        assert len(claimed) == len({sandbox for sandbox, _ in claimed}) == 2000
        assert {epoch for _, epoch in claimed} == {1}


def test_a_row_that_is_being_cancelled_is_not_claimed_and_costs_nobody_a_turn(owner: Connection) -> None:
    for _ in range(20):
        doomed = insert(owner, tenant="doomed", priority=9)
        owner.execute("update sandboxes set cancel_requested_at = now() where id = %s", [doomed])
    waiting = insert(owner, tenant="waiting")
    assert [each["id"] for each in claim(owner, 1)] == [waiting]
    assert claim(owner) == []
    assert len(ask(owner, "cancel_queued")) == 20
    assert steps(owner, doomed) == ["cancelled"]
    assert row(owner, doomed)["cleaned_at"] == at(0)


def test_an_attempt_is_claimed_only_once_its_time_has_come(owner: Connection) -> None:
    made = insert(owner)
    owner.execute("update sandboxes set retry_at = sandbox_now() + interval '10 seconds'")
    for second, due in ((0, 0), (9.999, 0), (10, 1)):
        clock(owner, second)
        assert claim(owner) == []
        assert len(ask(owner, "retry_due")) == due
    assert [each["id"] for each in claim(owner)] == [made]


def test_a_lease_is_taken_over_exactly_when_it_is_over_with_the_same_attempt(owner: Connection) -> None:
    made = insert(owner)
    claim(owner)
    owner.execute("update sandboxes set run_uid = 'u'")
    clock(owner, 60)
    assert take_over(owner) == []
    clock(owner, 60.001)
    assert take_over(owner, engine="another") == []
    [taken] = take_over(owner)
    assert (taken["id"], taken["attempt"], taken["epoch"], taken["run_uid"]) == (made, 1, 2, "u")
    assert taken["command"] == "true"
    assert (taken["claimed_by"], row(owner, made)["lease_until"]) == ("b", at(120.001))
    assert taken["claimed_age"] == pytest.approx(60.001)  # the start deadline runs on
    assert take_over(owner) == []
    assert steps(owner, made) == ["claimed", "taken over"]


def test_what_runs_or_waits_or_has_ended_is_not_taken_over(owner: Connection) -> None:
    insert_many(owner, 3)
    claim(owner, 2)
    owner.execute(
        "update sandboxes set state = 'running'"
        " where id in (select id from sandboxes where state = 'launching' limit 1)"
    )
    owner.execute("update sandboxes set state = 'lost', reason = 'Lost', finished_at = now() where state = 'launching'")
    clock(owner, 1000)
    assert take_over(owner) == []


def test_a_lease_is_prolonged_only_under_its_epoch(owner: Connection) -> None:
    made = insert(owner)
    claim(owner)
    clock(owner, 50)
    assert ask(owner, "renew", ids=[made], epochs=[2], lease=60.0) == []
    assert ask(owner, "renew", ids=[made], epochs=[1], lease=60.0) == [{"id": made}]
    clock(owner, 110)
    assert take_over(owner) == []
    assert ask(owner, "renew", ids=[made], epochs=[1], lease=0.0) == [{"id": made}]  # let go at the stop
    clock(owner, 110.001)
    assert len(take_over(owner)) == 1
    assert ask(owner, "renew", ids=[made], epochs=[1], lease=60.0) == []


def test_one_locked_row_does_not_cost_the_others_their_lease(database: str, owner: Connection) -> None:
    insert_many(owner, 3)
    made = [each["id"] for each in claim(owner)]
    with connect(database) as other, other.transaction():
        other.execute("update sandboxes set cancel_requested_at = now() where id = %s", [made[0]])
        renewed = ask(owner, "renew", ids=made, epochs=[1, 1, 1], lease=60.0)
        assert {each["id"] for each in renewed} == set(made[1:])


def test_claims_whose_reply_was_lost_are_taken_back(owner: Connection) -> None:
    insert_many(owner, 3)
    held, lost, others = (claim(owner, 1, me=me)[0]["id"] for me in ("a", "a", "other"))
    assert take_over(owner, me="a", held=[held]) == []
    [back] = take_over(owner, me="a", mine=True, held=[held])
    assert (back["id"], back["epoch"]) == (lost, 2)
    assert row(owner, others)["claimed_by"] == "other"


async def test_a_lost_claim_reply_raises_and_the_rows_come_back(database: str) -> None:
    async with opened(database) as store:
        with connect(database) as owner, connect(database) as killer:
            insert_many(owner, 5)
            with owner.transaction():  # the claim waits behind this lock, claims nothing yet, and loses its connection
                owner.execute("lock table sandbox_claim_turn in exclusive mode")
                claiming = asyncio.create_task(store.claim(10, 100, 60))
                await asyncio.to_thread(until, killer, WAITS_FOR_LOCK)
                kill_controllers(killer)
                with pytest.raises(DatabaseUnavailableError):
                    await claiming
            claim(owner)  # as if it had been done before the connection went
        [*back] = await store.take_over(10, 60, held=[])
        assert len(back) == 5
        assert {each.row.epoch for each in back} == {2}


def test_locked_rows_are_skipped_and_starve_nobody(database: str, owner: Connection) -> None:
    locked, free = insert(owner, priority=9), insert(owner)
    alone = insert(owner, tenant="alone")
    with connect(database) as admin, admin.transaction():
        admin.execute("update sandboxes set cancel_requested_at = now() where id = any(%s)", [[locked, alone]])
        assert [each["id"] for each in claim(owner, 1)] == [free]  # though it was the turn of `alone`, and of `locked`
        assert claim(owner) == []
        assert ask(owner, "cancel_queued") == []
    assert {each["id"] for each in ask(owner, "cancel_queued")} == {locked, alone}


def test_a_reference_to_a_row_does_not_keep_it_from_being_claimed(database: str, owner: Connection) -> None:
    made = insert(owner)
    owner.execute("create table builds (sandbox_id uuid references sandboxes)")
    with connect(database) as application, application.transaction():
        application.execute("insert into builds values (%s)", [made])
        assert [each["id"] for each in claim(owner)] == [made]


def test_claims_take_turns(database: str, owner: Connection) -> None:
    """The count of what runs and the claim are one step: a second claim waits for the first, and then counts it."""
    insert_many(owner, 10)
    with ThreadPoolExecutor(1) as pool, connect(database) as second, connect(database) as watcher:
        with owner.transaction():
            assert len(claim(owner, max_running=6)) == 6
            later = pool.submit(claim, second, me="b", max_running=6)
            until(watcher, WAITS_FOR_LOCK)
        assert later.result(timeout=10) == []


@pytest.mark.parametrize("count", [1, 40])
def test_no_tenant_waits_for_ever(count: int, owner: Connection) -> None:
    """Whatever the weights, with room for one at a time, everybody's turn comes."""
    owner.execute(
        "insert into sandbox_tenants (name, weight) select 't' || i, greatest(0.001, i) from generate_series(0, %s) i",
        [count],
    )
    insert_many(owner, 4 * count, tenants=count)
    seen: list[int] = []
    while claimed := claim(owner, 1):
        seen.append(len(claimed))
    assert len(seen) == 4 * count


async def test_order_of_age_is_the_order_of_insert(database: str, owner: Connection) -> None:
    made = [insert(owner) for _ in range(5)]  # all at the same instant
    async with opened(database) as store:
        assert [(await store.claim(1, 100, 60))[0].row.id for _ in range(5)] == made
    seqs = [row(owner, each)["seq"] for each in made]
    assert all(first < second for first, second in pairwise(seqs))


async def test_another_attempt_is_a_new_claim_of_its_own(database: str) -> None:
    with connect(database) as owner:
        insert(owner, max_attempts=2)
        async with opened(database) as store:
            [first] = await store.claim(1, 10, 60)
            assert await store.bind(WriteBind(first.row.key, first.row.epoch, "u"))
            bad = Outcome(State.FAILED, Reason.NON_ZERO_EXIT, "x", 1)
            assert await store.requeue(Ended(first.row.key, "u", bad, counted=True))
            assert await store.retry_due() == 1
            [second] = await store.claim(1, 10, 60)
        found = (second.row.attempt, second.row.epoch, second.row.failed_attempts, second.row.run_uid)
        assert found == (2, 2, 1, None)
        assert second.launch.key.name.endswith("-2")
        assert one(owner, "select count(*) as n from sandbox_attempts")["n"] == 1


# Whatever an application does with the table, and whatever one row holds, the others are claimed


CHANGES = {
    "a column more": "alter table sandboxes add column build_id uuid",
    "a column with a default": "alter table sandboxes add column build_id uuid not null default gen_random_uuid()",
    "a column with a variable's name": "alter table sandboxes add column controller text, add column room integer",
    "a column less": "alter table sandboxes drop column extra",
    "an index more": "create index on sandboxes (state, tenant, priority)",
    "a trigger more": "create trigger theirs before update on sandboxes for each row execute function touched()",
    "a generated column": "alter table sandboxes add column size bigint generated always as (length(command)) stored",
    "a rule more": "alter table sandboxes add constraint theirs check (command <> 'never')",
    "a column of the tenants": "alter table sandbox_tenants add column batch integer, add column n integer",
    "a column of the attempts": "alter table sandbox_attempts add column theirs text default 'x'",
    "a column of the events": "alter table sandbox_events add column controller text default 'x'",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_running_controller_goes_on_when_the_table_changes(change: str, database: str) -> None:
    with connect(database) as owner:
        owner.execute("alter table sandboxes add column extra text")
        owner.execute("create function touched() returns trigger language plpgsql as 'begin return new; end'")
        async with asyncio.timeout(60), opened(database, size=2) as store:
            for number in range(24):  # past the number at which the driver and plpgsql keep a plan
                if number == 12:
                    owner.execute(CHANGES[change])
                made = insert(owner, tenant=f"t{number % 3}")
                [got] = await store.claim(1, 1_000_000, 60)
                assert got.row.id == made
                assert await store.bind(WriteBind(got.row.key, got.row.epoch, "u"))
                assert await store.record(Ended(got.row.key, "u", Outcome(State.FAILED, Reason.KILLED, "x")))
                assert await store.owned_rows()
                await store.take_over(10, 60)
                await store.forget()


def refuse_one(owner: Connection, doomed: UUID) -> None:
    """An application's trigger, which lets nobody update that row."""
    owner.execute(
        "create function refuse_one() returns trigger language plpgsql as"
        " $$ begin raise exception 'no build is open for it'; end $$"
    )
    owner.execute(
        "create trigger refuse_one before update on sandboxes for each row"
        f" when (old.id = '{doomed}') execute function refuse_one()"
    )


@pytest.mark.parametrize("most", [1, 100])
def test_a_row_that_cannot_be_claimed_is_put_aside_and_the_others_run(
    most: int, database: str, owner: Connection
) -> None:
    doomed, *others = [insert(owner) for _ in range(5)]
    refuse_one(owner, doomed)
    with connect(database, "sandbox_controller") as controller:
        clock(controller, 0)
        got = [each["id"] for _ in range(5) for each in claim(controller, most)]
    assert got == others
    assert steps(owner, doomed) == ["set aside"]
    assert one(owner, "select why from sandbox_set_aside")["why"] == "no build is open for it"
    owner.execute("drop trigger refuse_one on sandboxes")
    assert claim(owner) == []
    clock(owner, 61)  # it is tried again by and by
    assert [each["id"] for each in claim(owner)] == [doomed]


def test_a_row_that_is_refused_again_waits_longer_each_time(owner: Connection) -> None:
    doomed = insert(owner)
    refuse_one(owner, doomed)
    waits = []
    second = 0.0
    for _ in range(12):
        clock(owner, second)
        assert claim(owner) == []
        again = one(owner, "select again_at from sandbox_set_aside")["again_at"]
        waits.append((again - at(second)).total_seconds())
        second += waits[-1] + 1
    assert waits[0] == 60
    assert all(first <= then for first, then in pairwise(waits))
    for _ in range(40):
        clock(owner, second)
        claim(owner)
        second = (one(owner, "select again_at from sandbox_set_aside")["again_at"] - at(0)).total_seconds() + 1
    again = one(owner, "select again_at - %s as pause from sandbox_set_aside", [at(second)])["pause"]
    assert again.total_seconds() <= 86_400


def test_no_timestamp_can_be_infinite(owner: Connection) -> None:
    found = owner.execute(
        "select table_name as relation, column_name as name from information_schema.columns join pg_class c"
        " on c.relname = table_name and c.relkind = 'r' and c.relnamespace = 'public'::regnamespace"
        " where table_schema = 'public' and data_type = 'timestamp with time zone'"
    ).fetchall()
    assert len(found) > 14
    insert(owner)
    claim(owner)
    owner.execute(
        "insert into sandbox_attempts (sandbox_id, attempt, state, reason) select id, 1, 'lost', 'Lost' from sandboxes"
    )
    owner.execute(
        "insert into sandbox_set_aside (sandbox_id, step, why, again_at) values (gen_random_uuid(), 'claim', '', now())"
    )
    owner.execute("insert into sandbox_controllers (name, engine) values ('a', 'e')")
    owner.execute("update sandboxes set state = 'lost', reason = 'Lost', finished_at = now(), cleaned_at = now()")
    owner.execute("set session_replication_role = replica")  # the rules alone, without triggers
    for each in found:
        for value in ("infinity", "-infinity"):
            with pytest.raises(psycopg.errors.CheckViolation, match=f"{each['name']} must be finite"):
                owner.execute(f"update {each['relation']} set {each['name']} = '{value}'")


@pytest.mark.parametrize("role", ["sandbox_requester", "sandbox_controller"])
def test_no_login_can_set_the_clock(role: str, database: str) -> None:
    near = "select abs(extract(epoch from clock_timestamp() - %s)) < 60 as near"
    with connect(database, role) as login, connect(database) as owner:
        login.execute("set sandbox.now = 'infinity'")
        assert one(owner, near, [one(login, "select sandbox_now() as now")["now"]])["near"]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            login.execute("create or replace function sandbox_now() returns timestamptz return 'infinity'")
        login.execute("set search_path = pg_temp, public")
        if role == "sandbox_requester":
            made = one(login, "insert into sandboxes (command, priority) values ('true', 32767) returning created_at")
            assert one(owner, near, [made["created_at"]])["near"]
        insert(owner)
        assert claim(owner)


async def test_a_claimed_row_that_cannot_be_read_ends_and_the_others_go_on(database: str, owner: Connection) -> None:
    """However it came to be so: here a rule was dropped."""
    owner.execute('alter table sandboxes drop constraint "env must be an object of at most 65,536 bytes"')
    bad, good = insert(owner, env="[1]"), insert(owner)
    async with opened(database) as store:
        assert {each.row.id for each in await store.claim(10, 100, 60)} == {good}
    found = row(owner, bad)
    assert (found["state"], found["reason"]) == ("failed", "InvalidRequest")
    assert found["message"] == "the row cannot be read: env is not an object"
