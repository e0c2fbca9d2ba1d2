"""What the controller tells over HTTP: alive while the loop turns, ready while database and engine answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.sql import SQL, Identifier

from controller import http as serving
from controller.__main__ import assemble
from controller.backends.memory import MemoryBackend
from controller.errors import BackendUnavailable
from controller.loop import Controller
from controller.settings import Settings
from tests.support.database import connect, insert, insert_many, until
from tests.support.proxy import Proxy


class Get:
    """Asks one controller."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session, self._port = session, port

    async def __call__(self, path: str) -> tuple[int, str]:
        async with self._session.get(f"http://127.0.0.1:{self._port}{path}") as answer:
            return answer.status, await answer.text()

    async def metrics(self) -> dict[str, float]:
        status, text = await self("/metrics")
        assert status == 200
        families = text_string_to_metric_families(text)
        return {
            " ".join([sample.name, *sorted(sample.labels.values())]): sample.value
            for family in families
            for sample in family.samples
        }


@asynccontextmanager
async def served(url: str, backend: MemoryBackend | None = None) -> AsyncIterator[tuple[Get, Controller]]:
    settings = Settings(database_url=url, sandbox_backend="memory", sandbox_poll_seconds=0.05)
    async with (
        asyncio.timeout(30),
        assemble(settings, backend or MemoryBackend()) as (controller, _, http),
        aiohttp.ClientSession() as session,
    ):
        runner, port = await http.serve(0)
        try:
            yield Get(session, port), controller
        finally:
            await runner.cleanup()


def test_a_working_controller_is_healthy_and_ready_and_counts(database: str) -> None:
    async def go() -> None:
        async with served(database) as (get, controller):
            stop = asyncio.Event()
            running = asyncio.create_task(controller.run(stop))
            with connect(database) as owner:
                insert_many(owner, 3)
                insert(owner, command="sleep 1000")
                done = "select count(*) = 3 from sandboxes where finished_at is not null"
                await asyncio.to_thread(until, owner, done)
                await asyncio.to_thread(until, owner, "select count(*) = 1 from sandboxes where state = 'running'")
            status, text = await get("/healthz")
            assert (status, text[:16]) == (200, "the loop turned ")
            assert await get("/readyz") == (200, "ready\n")
            found = await get.metrics()
            assert found["sandbox_outcomes_total Completed succeeded"] == 3
            assert found["sandbox_claimed_total claimed"] == 4
            assert found["sandbox_queued_seconds_count"] == 4
            assert (found["sandbox_rows queued"], found["sandbox_rows running"]) == (0, 1)
            assert found["sandbox_engine_up"] == 1
            assert found["sandbox_errors_total"] == 0
            stop.set()
            await running

    asyncio.run(go())


def test_a_stalled_loop_is_not_healthy(database: str) -> None:
    async def go() -> None:
        async with served(database) as (get, controller):
            controller.turned = time.monotonic() - serving.STALLED_SECONDS - 1
            status, text = await get("/healthz")
            assert status == 503
            assert text.startswith("the loop turned 16.")

    asyncio.run(go())


def test_without_its_database_it_is_alive_not_ready_and_still_counts(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "COUNT_SECONDS", 0.3)

    async def go() -> None:
        async with Proxy(database) as proxy, served(proxy.url) as (get, _):
            assert (await get("/readyz"))[0] == 200
            await proxy.refuse()
            status, text = await get("/readyz")
            assert status == 503
            assert text.startswith("the database of DATABASE_URL does not answer, or refuses this login: conn")
            assert text.count("\n") == 1
            assert (await get("/healthz"))[0] == 200
            found = await get.metrics()
            assert not [name for name in found if name.startswith("sandbox_rows")]

    asyncio.run(go())


def test_a_database_that_says_nothing_does_not_hang_the_probe(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READY_SECONDS", 0.3)

    async def go() -> None:
        async with served(database) as (get, _):

            async def silent(url: str) -> None:
                await asyncio.Event().wait()

            monkeypatch.setattr(serving, "check_schema", silent)
            assert await get("/readyz") == (503, "the database or the engine does not answer\n")

    asyncio.run(go())


def test_a_schema_that_shut_it_out_makes_it_not_ready(database: str) -> None:
    async def go() -> None:
        async with served(database) as (get, _):
            with connect(database) as owner:
                owner.execute("insert into sandbox_migrations values (999, 'later', 998)")
            status, text = await get("/readyz")
            assert status == 503
            assert text.startswith("the database's min_code_version is 998")

    asyncio.run(go())


def test_a_database_that_only_reads_makes_it_not_ready(database: str) -> None:
    async def go() -> None:
        async with served(database) as (get, _):
            with connect(database) as owner:
                name = Identifier(str(owner.info.dbname))
                setting = SQL("alter database {} set default_transaction_read_only = {}")
                for on, told in (("on", (503, "the database only reads: ")), ("off", (200, "ready"))):
                    owner.execute(setting.format(name, SQL(on)))
                    status, text = await get("/readyz")
                    assert (status, text.startswith(told[1])) == (told[0], True)
                    assert (await get("/healthz"))[0] == 200

    asyncio.run(go())


def test_without_its_engine_it_is_not_ready_and_says_why(database: str) -> None:
    class Broken(MemoryBackend):
        broken = False

        async def ping(self) -> None:
            if self.broken:
                raise BackendUnavailable("the engine is being repaired: wait")

    async def go() -> None:
        backend = Broken()
        async with served(database, backend) as (get, _):
            backend.broken = True
            assert await get("/readyz") == (503, "the engine is being repaired: wait\n")

    asyncio.run(go())
