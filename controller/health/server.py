"""Limits the HTTP server's connections: how many at once, and how long each may last, for one request."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

from controller.health.config import HealthConfig
from controller.logs import about

log = logging.getLogger(__name__)

CONNECTIONS = 64  # at once
SHARE = 8  # connections may take this fraction, 1/8, of the files that the process may have open
STOP_SECONDS = 2.0  # for the answers under way at the end
PAUSE_SECONDS = 0.2  # after a connection could not be accepted
WARN_SECONDS = 60.0  # between log lines about the same fault
LINE_BYTES = 4096  # of the request's first line, and of each header
SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # what strangers send is no news, and may be sent without end


class ConnectionLimiter:
    """Serves an application on a listening socket.

    When there are too many connections, the one that has been without a request for the longest is closed: whoever
    asks is answered, whatever others hold open.
    """

    def __init__(self, app: web.Application, listening: socket.socket, config: HealthConfig) -> None:
        self._listening, self._config = listening, config
        listening.setblocking(False)
        app.middlewares.append(self._once)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        self._most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._idle: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}  # no request yet; the oldest first
        self._asking: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._warned: dict[str, float] = {}

    async def open(self) -> None:
        """Begin to accept connections."""
        await self._runner.setup()
        self._accepting = asyncio.create_task(self._accept())

    async def cleanup(self) -> None:
        """Accept no more connections, and end those that there are."""
        self._accepting.cancel()
        with suppress(asyncio.CancelledError):
            await self._accepting
        self._listening.close()
        for transport in list(self._idle):
            _abort(transport)
        await self._runner.cleanup()

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """A connection was opened."""
        if len(self._idle) + len(self._asking) >= self._most:
            self._warn("too many HTTP connections, closing those without a request", most=self._most)
            oldest = next(iter(self._idle or self._asking))
            self.closed(oldest)
            _abort(oldest)
        self._idle[transport] = self._end_later(transport, self._config.request)

    def closed(self, transport: asyncio.BaseTransport) -> None:
        """A connection was closed."""
        for held in (self._idle, self._asking):
            if (timer := held.pop(transport, None)) is not None:
                timer.cancel()

    async def _accept(self) -> None:
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        while True:
            try:  # not asyncio's own server: out of files, it logs an error a thousand times a second
                taken, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                self._warn("HTTP connection not accepted, retrying", error=error.strerror)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            try:
                await loop.connect_accepted_socket(lambda: _Connection(self, server, loop), taken)
            except OSError:
                taken.close()  # its other end is gone already

    @web.middleware
    async def _once(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer one request, and end the connection with the answer: nothing is kept open for later."""
        if request.transport is not None and (timer := self._idle.pop(request.transport, None)) is not None:
            timer.cancel()
            self._asking[request.transport] = self._end_later(request.transport, self._config.answer)
        try:
            answer = await handler(request)
        except web.HTTPException as refusal:
            refusal.force_close()
            raise
        except Exception:
            log.exception("unexpected error in an HTTP request")
            answer = web.Response(status=500, text="an error of the controller's own: its log has it\n")
        answer.force_close()
        return answer

    def _end_later(self, transport: asyncio.BaseTransport, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, _abort, transport)

    def _warn(self, fault: str, **fields: object) -> None:
        now = time.monotonic()
        if now - self._warned.get(fault, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned[fault] = now
            log.warning(fault, extra=about(None, **fields))


class _Connection(web.RequestHandler):
    """aiohttp's side of one connection, which reports its beginning and its end."""

    __slots__ = ("_held", "_limiter")

    def __init__(self, limiter: ConnectionLimiter, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            logger=SILENT,
            access_log=None,  # type: ignore[arg-type]  # as AppRunner takes it
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            lingering_time=0,
        )
        self._limiter = limiter
        self._held: asyncio.BaseTransport | None = None  # aiohttp forgets it before it is lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._held = transport
        self._limiter.opened(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._held is not None:
            self._limiter.closed(self._held)
        super().connection_lost(exc)


def most_connections(files: int) -> int:
    """Return how many connections there may be at once if the process may have so many files open (-1: any number)."""
    return CONNECTIONS if files < 0 else max(4, min(CONNECTIONS, files // SHARE))


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.Transport):
        transport.abort()
