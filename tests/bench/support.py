"""What the measurements share: a fresh database, a controller in this process, an inserter in another."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing.connection import Connection
from uuid import UUID, uuid4

import psycopg
from psycopg.sql import SQL, Identifier

from controller.app import assemble
from controller.backends.base import Backend
from controller.db.listener import listen
from controller.db.migrate import migrate
from controller.reconcile.controller import cancel
from controller.settings import Settings
from tests.conftest import in_database


@contextmanager
def fresh(server: str) -> Iterator[str]:
    """A migrated database, dropped at the end."""
    name = f"bench_{uuid4().hex[:8]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(SQL("create database {}").format(Identifier(name)))
        try:
            migrate(in_database(server, name), {})
            yield in_database(server, name)
        finally:
            connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@asynccontextmanager
async def controller(url: str, backend: Backend, max_running: int = 100_000) -> AsyncIterator[None]:
    """A controller at work in this process, with its listener."""
    settings = Settings(database_url=url, sandbox_max_running=max_running)
    async with assemble(settings, backend) as (running, _, _):
        stop = asyncio.Event()
        tasks = [
            asyncio.create_task(running.run(stop)),
            asyncio.create_task(listen(url, "sandbox_wake", running.wake)),
        ]
        await asyncio.sleep(1.0)  # past its first looks
        try:
            yield
        finally:
            stop.set()
            await tasks[0]
            await cancel(tasks)


def _insert(url: str, pipe: Connection, command: str, rate: float, count: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        begin = time.monotonic()
        sent: list[tuple[UUID, float, float]] = []
        for number in range(count):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            one = uuid4()
            at = (time.monotonic(), time.time())
            connection.execute("insert into sandboxes (id, command, memory_mib) values (%s, %s, 256)", [one, command])
            sent.append((one, *at))
        pipe.send(sent)


async def paced_inserts(url: str, command: str, rate: float, count: int) -> dict[UUID, tuple[float, float]]:
    """Inserts by another process at an even pace; when each was sent, as (monotonic, wall-clock) seconds."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    inserter = multiprocessing.get_context("spawn").Process(target=_insert, args=(url, theirs, command, rate, count))
    inserter.start()
    while not ours.poll():
        await asyncio.sleep(0.05)
    sent = {one: (monotonic, wall) for one, monotonic, wall in ours.recv()}
    inserter.join()
    return sent


async def until_empty(url: str, condition: str, seconds: float = 300) -> None:
    """Waits until no row fulfils the condition."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection, asyncio.timeout(seconds):
        while await (
            await connection.execute(f"select 1 from sandboxes where {condition} limit 1".encode())
        ).fetchone():
            await asyncio.sleep(0.05)
