"""How soon: from the insert to `create`, and from the insert to the command."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from pathlib import Path
from uuid import UUID

import psycopg

from controller.backends.process.backend import ProcessBackend
from controller.db import sql
from controller.protocol.model import Key
from tests.bench.report import Figure, ms, quantile
from tests.bench.support import controller, fresh, paced_inserts, until_empty
from tests.support.memory_backend import Fault, MemoryBackend


async def insert_to_create(server: str, rate: float = 50, seconds: float = 20) -> list[Figure]:
    """The memory backend's `create`, woken by NOTIFY, and with the trigger dropped."""
    with fresh(server) as url:
        floor = await notify_and_claim(url)
    notified = await _to_create(server, rate, int(rate * seconds), drop_trigger=False)
    polled = await _to_create(server, 10, 100, drop_trigger=True)
    p50, p99 = quantile(notified, 0.5), quantile(notified, 0.99)
    bare50, bare99 = quantile(floor, 0.5), quantile(floor, 0.99)
    limits = max(0.005, 2 * bare50), max(0.030, 2 * bare99)
    return [
        Figure(
            f"insert to `create` called, memory backend, {rate:.0f}/s for {seconds:.0f} s",
            f"p50 {ms(p50)}, p99 {ms(p99)} ({p50 / bare50:.2f} x, {p99 / bare99:.2f} x floor)",
            f"bare NOTIFY and one claim: p50 {ms(bare50)}, p99 {ms(bare99)}",
            "p50 <= 5 ms, p99 <= 30 ms, or 2 x floor",
            p50 <= limits[0] and p99 <= limits[1],
        ),
        Figure(
            "the same with the NOTIFY trigger dropped",
            f"p50 {ms(quantile(polled, 0.5))}, p99 {ms(quantile(polled, 0.99))}",
            "poll interval: 1000 ms",
            "<= 1 poll interval",
            quantile(polled, 0.99) <= 1.0 + limits[1],
        ),
    ]


async def _to_create(server: str, rate: float, count: int, *, drop_trigger: bool) -> list[float]:
    called: dict[UUID, float] = {}

    def note(verb: str, key: Key) -> Fault | None:
        if verb == "create":
            called.setdefault(key.sandbox_id, time.monotonic())
        return None

    with fresh(server) as url:
        if drop_trigger:
            with psycopg.connect(url) as connection:
                connection.execute("drop trigger wake_on_insert on sandboxes")
        async with controller(url, MemoryBackend(fault=note)):
            sent = await paced_inserts(url, "echo hi", rate, count)
            await until_empty(url, "cleaned_at is null")
    return [called[one] - at for one, (at, _) in sent.items()]


async def notify_and_claim(url: str, count: int = 300) -> list[float]:
    """The floor: a bare client's insert, its notification to another connection, and that one's claim."""
    claim = sql.statements("queue.sql")["claim"]
    words = {"me": "floor", "engine": "floor", "lease": 60.0, "max_running": 10**6, "most": 100}
    took = []
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as inserter,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as listener,
        await psycopg.AsyncConnection.connect(url, autocommit=True) as claimer,
    ):
        await listener.execute("listen sandbox_wake")
        for _ in range(count):
            await asyncio.sleep(0.01)
            begin = time.monotonic()
            insert = asyncio.create_task(inserter.execute("insert into sandboxes (command) values ('echo hi')"))
            async for _notification in listener.notifies(stop_after=1):
                pass
            await (await claimer.execute(claim, words)).fetchall()
            took.append(time.monotonic() - begin)
            await insert
    return took


COMMAND = "date +%s%N"


async def insert_to_started(server: str, rate: float = 40, seconds: float = 10) -> list[Figure]:
    """The process backend: until the command's own first act, against a bare subprocess in turn."""
    with fresh(server) as url, tempfile.TemporaryDirectory() as directory:
        async with controller(url, ProcessBackend(Path(directory) / "work")):
            floor: list[float] = []
            running = asyncio.create_task(paced_inserts(url, COMMAND, rate, int(rate * seconds)))
            while not running.done():  # in turn with the sandboxes, under the same load
                floor.append(await asyncio.to_thread(_bare))
                await asyncio.sleep(0.2)
            sent = await running
            await until_empty(url, "cleaned_at is null")
        with psycopg.connect(url) as connection:
            rows = connection.execute("select id, output from sandbox_results").fetchall()
            outputs: dict[UUID, str] = dict(rows)
    took = [int(outputs[one]) / 1e9 - wall for one, (_, wall) in sent.items()]
    p50, p99 = quantile(took, 0.5), quantile(took, 0.99)
    bare50, bare99 = quantile(floor, 0.5), quantile(floor, 0.99)
    return [
        Figure(
            f"insert to started, process backend, {rate:.0f}/s for {seconds:.0f} s",
            f"p50 {ms(p50)}, p99 {ms(p99)} ({p50 / bare50:.2f} x, {p99 / bare99:.2f} x floor)",
            f"bare subprocess: p50 {ms(bare50)}, p99 {ms(bare99)}",
            "p50 <= 50 ms, p99 <= 250 ms, or 4 x floor",
            p50 <= max(0.050, 4 * bare50) and p99 <= max(0.250, 4 * bare99),
        )
    ]


def _bare() -> float:
    begin = time.time()
    shown = subprocess.run(["/bin/sh", "-c", COMMAND], capture_output=True, text=True, check=True).stdout
    return int(shown) / 1e9 - begin
