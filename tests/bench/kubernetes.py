"""`make bench-kubernetes`: figures on the cluster that KUBECONFIG names, written to bench-results-kubernetes.md.

`python -m tests.bench.kubernetes [--live N] [NAME...]` measures only those: created, running, rate, live, ends.
They do not all want the same cluster: `rate` and `live` want a controller-manager with raised limits (--kube-api-qps,
--kube-api-burst, --concurrent-job-syncs), `ends` one with the default limits; `live` and `ends` want kwok's simulated
nodes, for `live` with pods that run until all are launched, for `ends` with pods that end at once.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from tests.bench import kubernetes_latency, kubernetes_live, kubernetes_rate
from tests.bench.report import Figure, show, write
from tests.support.cluster import trouble
from tests.support.postgres import Postgres

FIGURES: dict[str, Callable[..., Coroutine[Any, Any, list[Figure]]]] = {
    "created": kubernetes_latency.created,
    "running": kubernetes_latency.running,
    "rate": kubernetes_rate.rate,
    "live": kubernetes_live.live,
    "ends": kubernetes_rate.ends,
}


def main(words: Sequence[str]) -> int:
    """Measures; returns 1 where a figure is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kubernetes")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}; by default all")
    parser.add_argument("--live", type=int, default=5000, metavar="N", help="sandboxes live at once (default: 5000)")
    options = parser.parse_args(words)
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"no figure is called {', '.join(sorted(unknown))}")
    if (why := trouble()) is not None:
        parser.error(why)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as directory:
        server = Postgres(Path(directory) / "postgres", durable=True)
        try:
            for name in options.names or FIGURES:
                more = {"sandboxes": options.live} if name == "live" else {}
                for figure in asyncio.run(FIGURES[name](server.url, **more)):
                    show(figure)
                    figures.append(figure)
        finally:
            server.stop()
    write(figures, Path("bench-results-kubernetes.md"))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
