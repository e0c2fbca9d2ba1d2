"""How many a second on a cluster: Jobs created from a full queue, and rows ended, against a bare client's loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import psycopg

from tests.bench.kubernetes_cluster import Watcher
from tests.bench.kubernetes_support import (
    NOWHERE,
    SIMULATED,
    controller,
    insert,
    jobs,
    place,
    post_all,
    simulated_nodes,
    until_ready,
)
from tests.bench.report import Figure
from tests.bench.support import until_empty

FIRST = 30  # pods that the controller-manager's default limits let through at once
DEFAULT_MOST = 15.0  # pods a second; with its default limits it makes about 8


async def rate(server: str, rows: int = 1000, rounds: int = 3) -> list[Figure]:
    """From the first Job to the last, the controller started on a full queue. Its pods stay pending.

    As everywhere, a plain client's Jobs have no gate: the scheduler looks at each pod of either once.

    With a controller-manager that has its default limits, the removal of so many Jobs takes minutes a round.
    """
    ours, bare, pods, cpu = [], [], [], []
    for _ in range(rounds):
        async with place(server) as at:
            await post_all(at, jobs(rows, "true", NOWHERE, gated=False))
            await at.watcher.until("every Job", lambda: len(at.watcher.times("created")) == rows)
            bare.append(_a_second(at.watcher.times("created")))
            await at.watcher.until("some pods", lambda: len(at.watcher.times("pod")) >= min(3 * FIRST, rows))
            pods.append(pod_rate(at.watcher))
        async with place(server) as at:
            async with await psycopg.AsyncConnection.connect(at.url, autocommit=True) as connection:
                await insert(connection, "true", rows)
            async with controller(at, NOWHERE) as child:
                seconds = 30 + rows / 2
                await at.watcher.until("every Job", lambda: len(at.watcher.sights) == rows, seconds)
                ours.append(_a_second(at.watcher.times("created")))
            cpu.append(child.cpu_seconds / rows)
    ratio = median(one / other for one, other in zip(ours, bare, strict=True))
    each = ", ".join(f"{one:.0f}" for one in ours)
    return [
        Figure(
            f"Jobs created a second, {rows:,} queued rows, median of {rounds}",
            f"{median(ours):.0f}/s ({ratio:.2f} x floor); each: {each}; {median(cpu) * 1000:.1f} ms CPU a row",
            f"a bare client, as many at once: {median(bare):.0f}/s; {limits(median(pods))}",
            ">= 0.8 x floor, limits raised",
            ratio >= 0.8,
        )
    ]


async def ends(server: str, rows: int = 200, rounds: int = 3) -> list[Figure]:
    """Rows ended a second on simulated nodes whose pods end at once, with the controller-manager's default limits."""
    simulated_nodes()
    ours, bare, pods = [], [], []
    for _ in range(rounds):
        async with place(server) as at:
            begin = await post_all(at, jobs(rows, "true", SIMULATED, gated=False))
            await at.watcher.until("every end", lambda: len(at.watcher.times("ended")) == rows, 60 + rows)
            bare.append(rows / (at.watcher.times("ended")[-1] - begin))
            pods.append(pod_rate(at.watcher))
        async with place(server) as at, controller(at, SIMULATED):
            await until_ready(at)
            async with await psycopg.AsyncConnection.connect(at.url, autocommit=True) as connection:
                begin = time.monotonic()
                await insert(connection, "true", rows)
            await until_empty(at.url, "finished_at is null", 60 + rows)
            ours.append(rows / (time.monotonic() - begin))
    ratio = median(one / other for one, other in zip(ours, bare, strict=True))
    return [
        Figure(
            f"rows ended a second, {rows} rows, median of {rounds}",
            f"{median(ours):.1f}/s ({ratio:.2f} x floor); each: {', '.join(f'{one:.1f}' for one in ours)}",
            f"bare Jobs without a gate: {median(bare):.1f}/s; {limits(median(pods))}",
            ">= 0.9 x floor, default limits",
            ratio >= 0.9,
        )
    ]


def pod_rate(watcher: Watcher) -> float:
    """Pods made a second, past the burst that the first of them are part of."""
    return _a_second(watcher.times("pod")[FIRST:])


def limits(pods_a_second: float) -> str:
    """What the controller-manager does, and which limits that means."""
    which = "default" if pods_a_second < DEFAULT_MOST else "raised"
    return f"the controller-manager makes {pods_a_second:.0f} pods/s: {which} limits"


def _a_second(times: Sequence[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])
