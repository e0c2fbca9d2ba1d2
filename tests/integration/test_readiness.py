"""/readyz tells that nothing is claimed although something could be, and why; and costs the same however many ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from controller import app
from controller.db.listener import listen
from controller.db.migrate import check_schema
from controller.health.config import HealthConfig
from controller.health.readiness import MANY_ASIDE, Readiness
from controller.protocol.model import Launch, ObservedRun
from controller.reconcile.controller import Controller, cancel
from controller.settings import Settings
from tests.support.control import Table, table
from tests.support.memory_backend import MemoryBackend

Ask = Callable[[], Awaitable[tuple[int, str]]]


CONFIG = HealthConfig(unclaimed=0.5, kept=0.0)


@asynccontextmanager
async def working(url: str, backend: MemoryBackend, **settings: Any) -> AsyncIterator[tuple[Ask, Controller]]:
    """A controller at work, and how to ask whether it is ready."""
    asked = Settings(database_url=url, sandbox_poll_seconds=0.1, **settings)
    async with (
        asyncio.timeout(40),
        app.assemble(asked, backend, health=CONFIG) as (controller, _, http),
        aiohttp.ClientSession() as session,
    ):
        door, port = await http.serve(0)
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(controller.run(stop)),
            asyncio.create_task(listen(url, "sandbox_wake", controller.wake)),
        ]

        async def ask() -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                return answer.status, await answer.text()

        try:
            yield ask, controller
        finally:
            stop.set()
            await tasks[0]
            await cancel(tasks)
            await door.cleanup()


async def until(ask: Ask, status: int) -> str:
    """Asks until that is the answer."""
    while (answer := await ask())[0] != status:
        await asyncio.sleep(0.05)
    return answer[1]


async def stays_ready(ask: Ask, asked: Table) -> None:
    """For much longer than a row may wait, by the database's clock."""
    (began,) = await asked.rows("select clock_timestamp() as at")
    over = "select clock_timestamp() > %s + interval '2 seconds' as over"
    while not (await asked.rows(over, began["at"]))[0]["over"]:
        assert await ask() == (200, "ready\n")
        await asyncio.sleep(0.05)


async def insert_old(asked: Table, **columns: Any) -> Any:
    """A row that has been there for a minute."""
    return await asked.insert(created_at=datetime.now(UTC) - timedelta(minutes=1), **columns)


def test_a_claim_that_waits_for_a_lock_makes_it_not_ready_and_names_the_holder(database: str) -> None:
    async def go() -> None:
        async with table(database) as holder, table(database) as asked:
            await holder.rows("begin")
            await holder.rows("lock table sandbox_claim_turn in exclusive mode")
            (held_by,) = await holder.rows("select pg_backend_pid() as pid")
            async with working(database, MemoryBackend()) as (ask, _):
                sandbox = await insert_old(asked)
                text = await until(ask, 503)
                assert text.startswith(f"sandbox {sandbox} has waited ")
                assert "none is claimed: a claim has waited for the database for " in text
                assert text.endswith(f"(held up by database process {held_by['pid']})\n")
                await holder.rows("rollback")
                await until(ask, 200)
                await asked.cleaned(sandbox)

    asyncio.run(go())


def test_claims_that_fail_each_time_make_it_not_ready_with_their_error(database: str) -> None:
    claim = "execute on function sandbox_claim_v3(text, text, double precision, integer, integer)"

    async def go() -> None:
        as_role = f"{database}{'&' if '?' in database else '?'}options=-crole%3Dsandbox_controller"
        async with table(database) as asked, working(as_role, MemoryBackend()) as (ask, _):
            await asked.rows(f"revoke {claim} from sandbox_controller")
            sandbox = await insert_old(asked)
            text = await until(ask, 503)
            assert f"sandbox {sandbox} has waited " in text
            assert "permission denied for function sandbox_claim_v3" in text
            await asked.rows(f"grant {claim} to sandbox_controller")
            await until(ask, 200)

    asyncio.run(go())


class Hanging(MemoryBackend):
    """An engine that says that it is well, and answers no creation until the test lets it."""

    launching = 2

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Hangs."""
        await self.go_on.wait()
        return await super().create(launch, look=look)


def test_launches_that_all_hang_on_the_engine_make_it_not_ready(database: str) -> None:
    async def go() -> None:
        backend = Hanging()
        async with table(database) as asked, working(database, backend) as (ask, _):
            sandboxes = [await insert_old(asked) for _ in range(3)]
            text = await until(ask, 503)
            assert "all places for launches have been taken for " in text
            assert text.endswith("2 of 2: the engine has not answered yet\n")
            backend.go_on.set()
            await until(ask, 200)
            for sandbox in sandboxes:
                await asked.cleaned(sandbox)

    asyncio.run(go())


def test_a_row_that_claims_pass_over_makes_it_not_ready(database: str) -> None:
    async def go() -> None:
        async with table(database) as holder, table(database) as asked:
            sandbox = await insert_old(asked)
            await holder.rows("begin")
            await holder.rows("select from sandboxes for update")
            async with working(database, MemoryBackend()) as (ask, _):
                text = await until(ask, 503)
                assert f"sandbox {sandbox} has waited " in text
                assert "another transaction may hold it locked" in text
                await holder.rows("rollback")
                await until(ask, 200)

    asyncio.run(go())


def test_a_queue_that_waits_for_room_is_normal(database: str) -> None:
    async def go() -> None:
        async with table(database) as asked, working(database, MemoryBackend(), sandbox_max_running=1) as (ask, _):
            first = await asked.insert("sleep 600")
            await asked.until(first, lambda row: row["state"] == "running")
            await insert_old(asked)
            await stays_ready(ask, asked)

    asyncio.run(go())


def test_a_tenant_at_its_limit_an_attempt_not_due_and_a_row_set_aside_are_normal(database: str) -> None:
    async def go() -> None:
        async with table(database) as asked:
            await asked.rows("insert into sandbox_tenants (name, max_running) values ('none', 0)")
            await insert_old(asked, tenant="none")
            await insert_old(asked, retry_at="2100-01-01")
            aside = await insert_old(asked)
            set_aside = "insert into sandbox_set_aside (sandbox_id, step, why, again_at) values (%s, %s, 'x', %s)"
            await asked.rows(set_aside, aside, "claim", "2100-01-01")
            async with working(database, MemoryBackend()) as (ask, _):
                await stays_ready(ask, asked)

    asyncio.run(go())


def test_a_database_that_refuses_every_claim_makes_it_not_ready_with_its_words(database: str) -> None:
    refuse = "begin if new.state = 'launching' then raise 'the application says no'; end if; return new; end"

    async def go() -> None:
        async with table(database) as asked:
            await asked.rows(f"create function no() returns trigger language plpgsql as $$ {refuse} $$")
            await asked.rows("create trigger no before update on sandboxes for each row execute function no()")
            for _ in range(MANY_ASIDE):
                await insert_old(asked)
            async with working(database, MemoryBackend()) as (ask, _):
                text = await until(ask, 503)
            assert text == "the database refuses every claim, 10 rows are set aside: the application says no\n"

    asyncio.run(go())


def test_however_many_ask_at_once_the_database_is_asked_once(database: str) -> None:
    asked = 0

    async def counted() -> None:
        nonlocal asked
        asked += 1
        await check_schema(database)

    async def go() -> None:
        backend, settings = MemoryBackend(), Settings(database_url=database)
        async with app.assemble(settings, backend) as (controller, store, _):
            readiness = Readiness(store, backend, controller.claims, counted, HealthConfig(kept=60.0))
            assert set(await asyncio.gather(*(readiness.trouble() for _ in range(50)))) == {""}
        assert asked == 1

    asyncio.run(go())
