"""What the controller tells over HTTP: alive while the loop turns, ready while database and engine answer."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.sql import SQL, Identifier

from controller.app import assemble
from controller.errors import BackendUnavailableError
from controller.health import server
from controller.health.config import HealthConfig
from controller.reconcile.controller import Controller
from controller.settings import Settings
from tests.support import memory_controller
from tests.support.database import connect, insert, insert_many, until
from tests.support.forked import Forked
from tests.support.memory_backend import MemoryBackend
from tests.support.proxy import Proxy

CONFIG = HealthConfig(kept=0.0)  # each question is asked anew


class Get:
    """Asks one controller."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session, self.port = session, port

    async def __call__(self, path: str) -> tuple[int, str]:
        async with self._session.get(f"http://127.0.0.1:{self.port}{path}") as answer:
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
async def served(
    url: str, backend: MemoryBackend | None = None, **config: float
) -> AsyncIterator[tuple[Get, Controller]]:
    settings = Settings(database_url=url, sandbox_poll_seconds=0.05)
    async with (
        asyncio.timeout(30),
        assemble(settings, backend or MemoryBackend(), health=replace(CONFIG, **config)) as (controller, _, http),
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
            controller.turned = time.monotonic() - CONFIG.stalled_loop - 1
            status, text = await get("/healthz")
            assert status == 503
            assert text.startswith("the loop turned 16.")

    asyncio.run(go())


def test_without_its_database_it_is_alive_not_ready_and_still_counts(
    database: str,
) -> None:
    async def go() -> None:
        async with Proxy(database) as proxy, served(proxy.url, count=0.3) as (get, _):
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


def test_a_database_that_says_nothing_does_not_hang_the_probe(database: str) -> None:
    async def go() -> None:
        async with Proxy(database) as proxy, served(proxy.url, ready=0.3) as (get, _):
            proxy.mute()
            assert await get("/readyz") == (503, "the database does not answer\n")

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
                for on, told in (("on", (503, "the database is read-only: ")), ("off", (200, "ready"))):
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
                raise BackendUnavailableError("the engine is being repaired: wait")

    async def go() -> None:
        backend = Broken()
        async with served(database, backend) as (get, _):
            backend.broken = True
            assert await get("/readyz") == (503, "the engine is being repaired: wait\n")

    asyncio.run(go())


def requests(text: str, port: int, many: int) -> list[socket.socket]:
    """So many connections that have sent just this."""
    made = []
    for _ in range(many):
        made.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        with suppress(OSError):  # it may have been closed again by now
            made[-1].sendall(text.encode())
    return made


@contextmanager
def controller_with_few_files(url: str, log: Path) -> Iterator[int]:
    """A controller's process that may have 300 files open; its port."""
    environment = os.environ | {"DATABASE_URL": url, "HTTP_PORT": "0"}
    process = Forked(memory_controller.run, environment=environment, log=log, open_files=300)
    try:
        give_up = time.monotonic() + 30
        while not (found := re.search(r'"http_port": (\d+)', log.read_text() if log.exists() else "")):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up
            time.sleep(0.05)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    "text",
    ["", "GET /hea", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", "nonsense\r\n\r\n",
     "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nslow",
     "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + "a" * 100_000],
    ids=["nothing", "half a line", "half a header", "nonsense", "a body that does not come", "a header without end"],
)  # fmt: skip
def test_connections_that_are_held_open_keep_nobody_from_an_answer(database: str, tmp_path: Path, text: str) -> None:
    log = tmp_path / "log"
    with controller_with_few_files(database, log) as port:
        before = log.read_text().count("\n")
        held = requests(text, port, 400)
        try:
            for _ in range(10):
                with socket.create_connection(("127.0.0.1", port), timeout=1) as asking:
                    asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert asking.recv(100).startswith(b"HTTP/1.1 200 OK")
        finally:
            for each in held:
                each.close()
    told = log.read_text().splitlines()[before:]
    assert len(told) <= 4, told
    assert "Traceback" not in str(told)


class Silent(MemoryBackend):
    """An engine that never answers whether it is there."""

    async def ping(self) -> None:
        """No answer."""
        await asyncio.Event().wait()


@pytest.mark.parametrize("text", ["", "GET /healthz HTTP/1.1\r\nHost:", "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_connection_ends_by_itself(database: str, text: str) -> None:
    async def go() -> None:
        async with served(database, Silent(), request=0.2, answer=0.4, ready=60.0) as (get, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", get.port)
            writer.write(text.encode())
            async with asyncio.timeout(5):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()

    asyncio.run(go())


def test_a_connection_is_for_one_request(database: str) -> None:
    async def go() -> None:
        async with served(database) as (get, _):
            for path in ("/healthz", "/readyz", "/metrics", "/nothing"):
                reader, writer = await asyncio.open_connection("127.0.0.1", get.port)
                writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2)
                async with asyncio.timeout(5):
                    answer = (await reader.read()).decode()
                assert answer.count("HTTP/1.1 ") == 1
                assert "connection: close" in answer.lower()
                writer.close()

    asyncio.run(go())


@pytest.mark.parametrize(("files", "most"), [(-1, 64), (1 << 20, 64), (1024, 64), (300, 37), (64, 8), (10, 4)])
def test_connections_leave_most_files_to_the_controller(files: int, most: int) -> None:
    assert server.most_connections(files) == most
