"""How soon on a cluster: from the insert to the Job, and from the insert to the container that runs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import psycopg

from tests.bench.kubernetes_cluster import Sight
from tests.bench.kubernetes_support import ANYWHERE, NOWHERE, Place, controller, insert, jobs, place, until_ready
from tests.bench.report import Figure, ms, quantile

CANCEL = "update sandboxes set cancel_requested_at = now() where id = %s"
Connection = psycopg.AsyncConnection[tuple[Any, ...]]


async def created(server: str, count: int = 200) -> list[Figure]:
    """An idle controller, one row at a time; in turn with it a bare POST of the same manifest."""
    chance = random.Random(1)
    ours: dict[str, tuple[float, float]] = {}
    bare: list[float] = []
    async with place(server) as at, controller(at, NOWHERE) as child:
        await until_ready(at)
        async with await psycopg.AsyncConnection.connect(at.url, autocommit=True) as connection:
            await _row_to_job(at, connection)  # connections are open from here on
            for _ in range(count):
                await asyncio.sleep(chance.uniform(0.05, 0.3))
                name, *times = await _row_to_job(at, connection)
                ours[name] = (times[0], times[1])
                await asyncio.sleep(chance.uniform(0.05, 0.3))
                bare.append(await _post_to_job(at))
    seen = [to - begin for begin, to in ours.values()]
    sent = [child.posts[name][0] - begin for name, (begin, _) in ours.items()]
    answered = [child.posts[name][1] - begin for name, (begin, _) in ours.items()]
    p50, p99 = quantile(seen, 0.5), quantile(seen, 0.99)
    return [
        Figure(
            f"insert to Job created, idle controller, {count} rows one at a time",
            f"p50 {ms(p50)}, p99 {ms(p99)}; its POST sent: {_both(sent)}; answered: {_both(answered)}",
            f"bare POST to the same watcher: {_both(bare)}",
            "p50 <= 20 ms, p99 <= 100 ms",
            p50 <= 0.020 and p99 <= 0.100,
        )
    ]


async def _row_to_job(at: Place, connection: Connection) -> tuple[str, float, float]:
    """One row until its Job is seen; then it is cancelled, and gone before this returns."""
    begin = time.monotonic()
    [key] = await insert(connection, "true")
    sight = at.watcher.sights[key.name]
    await at.watcher.until("a Job", lambda: sight.created is not None)
    await at.watcher.until("its pod", lambda: sight.pod is not None)
    await connection.execute(CANCEL, [key.sandbox_id])
    await at.watcher.until("its removal", lambda: not sight.left)
    return key.name, begin, _at(sight.created)


async def _post_to_job(at: Place) -> float:
    [job] = jobs(1, "true", NOWHERE, gated=True)
    sight = at.watcher.sights[job["metadata"]["name"]]
    begin = time.monotonic()
    await at.client.post(job)
    await at.watcher.until("a Job", lambda: sight.created is not None)
    await at.watcher.until("its pod", lambda: sight.pod is not None)
    await _remove(at, job["metadata"]["name"])
    return _at(sight.created) - begin


async def running(server: str, pairs: int = 50, command: str = "sleep 1") -> list[Figure]:
    """Rows in turn with bare Jobs that nothing holds back; each runs and is removed before the next."""
    took: list[tuple[float, float]] = []
    async with place(server) as at, controller(at, ANYWHERE):
        await until_ready(at)
        async with await psycopg.AsyncConnection.connect(at.url, autocommit=True) as connection:
            await _row_to_running(at, connection, command)  # the image is there, connections are open
            for turn in range(pairs):
                if turn % 2:
                    bare = await _post_to_running(at, command)
                    took.append((await _row_to_running(at, connection, command), bare))
                else:
                    ours = await _row_to_running(at, connection, command)
                    took.append((ours, await _post_to_running(at, command)))
    ratio = median(ours / bare for ours, bare in took)
    ours50, bare50 = median(ours for ours, _ in took), median(bare for _, bare in took)
    return [
        Figure(
            f"insert to container running, image present, median of {pairs} pairs",
            f"{ratio:.2f} x floor; p50 {ms(ours50)}",
            f"a bare Job without a gate: p50 {ms(bare50)}",
            "<= 1.15 x floor",
            ratio <= 1.15,
        )
    ]


async def _row_to_running(at: Place, connection: Connection, command: str) -> float:
    begin = time.monotonic()
    [key] = await insert(connection, command)
    sight = at.watcher.sights[key.name]
    await at.watcher.until("its outcome", lambda: sight.recorded is not None)
    return await _ran(at, key.name, sight) - begin


async def _post_to_running(at: Place, command: str) -> float:
    [job] = jobs(1, command, ANYWHERE, gated=False)
    name: str = job["metadata"]["name"]
    sight = at.watcher.sights[name]
    begin = time.monotonic()
    await at.client.post(job)
    return await _ran(at, name, sight) - begin


async def _ran(at: Place, name: str, sight: Sight) -> float:
    """When its container was seen running; returns after its end and removal."""
    await at.watcher.until("its end", lambda: sight.ended is not None)
    await _remove(at, name)
    return _at(sight.running)


async def _remove(at: Place, name: str) -> None:
    await at.client.delete(name)
    await at.watcher.until(f"the removal of {name}", lambda: not at.watcher.sights[name].left)


def _at(moment: float | None) -> float:
    if moment is None:
        raise RuntimeError("a watch did not tell what it was asked for")
    return moment


def _both(values: Sequence[float]) -> str:
    return f"p50 {ms(quantile(values, 0.5))}, p99 {ms(quantile(values, 0.99))}"
