"""How many at once on a cluster: thousands of sandboxes live on simulated nodes, and what the controller needs."""

from __future__ import annotations

from collections import Counter

import psycopg

from tests.bench.kubernetes_cluster import Watcher
from tests.bench.kubernetes_rate import limits, pod_rate
from tests.bench.kubernetes_support import SIMULATED, Child, controller, insert, place, simulated_nodes, until_ready
from tests.bench.report import Figure
from tests.bench.support import until_empty

OUTCOMES = "select state, reason, attempt, count(*) from sandboxes group by 1, 2, 3 order by 4 desc"
MOST_BYTES = 250_000_000
MOST_REQUESTS = 6.0


async def live(server: str, sandboxes: int = 5000) -> list[Figure]:
    """All are launched before the first ends: the simulated nodes must run pods for long enough for that."""
    nodes = simulated_nodes()
    async with place(server) as at:
        async with (
            controller(at, SIMULATED, sandboxes) as child,
            await psycopg.AsyncConnection.connect(at.url, autocommit=True) as connection,
        ):
            await until_ready(at)
            keys = await insert(connection, "true", sandboxes)
            await until_empty(at.url, "cleaned_at is null", 600 + sandboxes / 2)
            ended = await (await connection.execute(OUTCOMES)).fetchall()
            watcher = at.watcher
        asked = {key.name for key in keys}
    twice = sum(1 for sight in watcher.sights.values() if len(sight.jobs) != 1 or len(sight.pods) != 1)
    right = ended == [("succeeded", "Completed", 1, sandboxes)] and not twice and set(watcher.sights) == asked
    said = ", ".join(f"{count:,} {state} {reason} (attempt {attempt})" for state, reason, attempt, count in ended)
    launch = watcher.times("running")
    return [
        Figure(
            f"{sandboxes:,} sandboxes live at once on {nodes} simulated nodes",
            f"{watcher.most_live:,} containers running at once, all within {launch[-1] - launch[0]:.0f} s; {said}; "
            f"{twice} with more or less than one Job and one pod",
            limits(pod_rate(watcher)),
            "all live at once, all end succeeded, none lost, none twice",
            right and watcher.most_live == sandboxes,
        ),
        _memory(child, sandboxes),
        _requests(child, sandboxes, watcher),
    ]


def _memory(child: Child, sandboxes: int) -> Figure:
    return Figure(
        f"controller memory with {sandboxes:,} live sandboxes",
        f"peak {child.peak_bytes / 1e6:.0f} MB; {child.cpu_seconds / sandboxes * 1000:.1f} ms CPU a sandbox",
        "-",
        f"<= {MOST_BYTES / 1e6:.0f} MB",
        child.peak_bytes <= MOST_BYTES,
    )


def _requests(child: Child, sandboxes: int, watcher: Watcher) -> Figure:
    counted = Counter({what: count for what, count in child.requests.items() if not what.startswith("WATCH")})
    each = counted.total() / sandboxes
    kinds = ", ".join(f"{what} {count / sandboxes:.3f}" for what, count in counted.most_common())
    watches = sum(child.requests.values()) - counted.total()
    return Figure(
        f"API requests a sandbox, {sandboxes:,} sandboxes",
        f"{each:.2f}: {kinds}; and {watches} watches",
        "-",
        f"<= {MOST_REQUESTS:.0f}",
        each <= MOST_REQUESTS,
    )
