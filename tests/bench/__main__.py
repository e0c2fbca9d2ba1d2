"""`make bench`: every figure, printed as it is measured and written to bench-results.md.

`python -m tests.bench NAME...` measures only those: create, started, lives, claims, memory.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import latency, scale, throughput
from tests.bench.report import Figure, show, write
from tests.support.postgres import Postgres

FIGURES: dict[str, Callable[[str], list[Figure]]] = {
    "create": lambda server: asyncio.run(latency.insert_to_create(server)),
    "started": lambda server: asyncio.run(latency.insert_to_started(server)),
    "lives": lambda server: asyncio.run(throughput.whole_lives(server)),
    "claims": scale.claims,
    "memory": scale.memory,
}


def main(names: list[str]) -> int:
    """Measures; returns 1 where a figure is missed."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as directory:
        server = Postgres(Path(directory) / "postgres", durable=True)
        try:
            for name in names or FIGURES:
                for figure in FIGURES[name](server.url):
                    show(figure)
                    figures.append(figure)
        finally:
            server.stop()
    write(figures, Path("bench-results.md"))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
