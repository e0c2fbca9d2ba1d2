"""`python -m controller run`, its requests to the cluster counted; the count is written to a file at its end.

python -m tests.bench.kubernetes_controller REPORT
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from kubernetes.aio.client.rest import RESTClientObject

from controller.__main__ import main

KIND = re.compile(r"/namespaces/[^/]+/(jobs|pods)(/[^/]+)?(/log)?$")


class Count:
    """The requests by shape and status, and when the POST of each Job was sent and answered."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.posts: dict[str, tuple[float, float]] = {}
        self._real: Callable[..., Awaitable[Any]] = RESTClientObject.request

    async def request(self, client: Any, method: str, url: str, **more: Any) -> Any:
        """Sends a request as the client would, and counts it."""
        sent = time.monotonic()
        status = "unanswered"
        try:
            answer = await self._real(client, method, url, **more)
            status = str(answer.status)
        finally:
            self.requests[f"{shape(method, url)} {status}"] += 1
            if method == "POST":
                self.posts[more["body"]["metadata"]["name"]] = (sent, time.monotonic())
        return answer


def shape(method: str, url: str) -> str:
    """`PATCH pods/*`, `LIST pods`, `WATCH jobs`: a request without its names."""
    parts = urlsplit(url)
    found = KIND.search(parts.path)
    kind, name, log = found.groups() if found else (parts.path, "", "")
    verb = method if name or method != "GET" else "WATCH" if "watch=1" in parts.query else "LIST"
    return f"{verb} {kind}{'/*' if name else ''}{log or ''}"


def run(report: Path) -> int:
    """The controller until SIGTERM."""
    count = Count()

    async def request(client: Any, method: str, url: str, **more: Any) -> Any:
        return await count.request(client, method, url, **more)

    with patch.object(RESTClientObject, "request", request):
        code = main(["run"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    words = {"requests": count.requests, "posts": count.posts, "cpu_seconds": used.ru_utime + used.ru_stime}
    report.write_text(json.dumps(words))
    return code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
