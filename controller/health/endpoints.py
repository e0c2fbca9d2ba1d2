"""The HTTP endpoints: /healthz, /readyz, /metrics."""

from __future__ import annotations

import asyncio
import socket
import time

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from controller.db.store import Store
from controller.errors import SandboxError, SettingsError
from controller.health.config import HealthConfig
from controller.health.readiness import Readiness
from controller.health.server import ConnectionLimiter
from controller.metrics import Metrics
from controller.protocol.text import without_addresses
from controller.reconcile.controller import Controller

# Connections that the kernel keeps until they are accepted. A dropped one is retried after 1 s: a probe is missed.
BACKLOG = 1024


class HealthServer:
    """Answers for one controller."""

    def __init__(
        self, controller: Controller, store: Store, metrics: Metrics, readiness: Readiness, config: HealthConfig
    ) -> None:
        self._controller, self._store, self._metrics = controller, store, metrics
        self._readiness, self._config = readiness, config

    async def serve(self, port: int) -> tuple[ConnectionLimiter, int]:
        """Listen on every address; return what to clean up, and the port. Raises SettingsError."""
        app = web.Application()
        for path, answer in (("/healthz", self.healthz), ("/readyz", self.readyz), ("/metrics", self.metrics)):
            app.router.add_get(path, answer)
        both = socket.has_dualstack_ipv6()  # one socket, so that port 0 is one port
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            listening = socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=BACKLOG)
        except OSError as error:
            raise SettingsError(f"HTTP_PORT = {port} cannot be listened on: {error.strerror}; set another") from error
        limiter = ConnectionLimiter(app, listening, self._config)
        await limiter.open()
        return limiter, listening.getsockname()[1]

    async def healthz(self, request: web.Request) -> web.Response:
        """Answer 200 while the event loop turns."""
        age = time.monotonic() - self._controller.turned
        return web.Response(
            status=200 if age < self._config.stalled_loop else 503, text=f"the loop turned {age:.1f} s ago\n"
        )

    async def readyz(self, request: web.Request) -> web.Response:
        """Answer 200 if database, schema and engine will do and rows are claimed; else 503 and what is wrong."""
        trouble = await self._readiness.trouble()
        if trouble:
            return web.Response(status=503, text=f"{without_addresses(trouble)}\n")
        return web.Response(text="ready\n")

    async def metrics(self, request: web.Request) -> web.Response:
        """Answer with the counters, and the rows by state."""
        try:
            async with asyncio.timeout(self._config.count):
                counts = await self._store.counts()
            for state, count in {"queued": 0, "launching": 0, "running": 0, **counts}.items():
                self._metrics.rows.labels(state).set(count)
        except (SandboxError, TimeoutError):
            self._metrics.rows.clear()  # no figure is better than an old one
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
