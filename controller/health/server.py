"""Takes the connections of the HTTP server: so many at once, each for one request and for so long."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from contextlib import suppress

from aiohttp import web
from aiohttp.typedefs import Handler

log = logging.getLogger(__name__)

CONNECTIONS = 64  # at once
SHARE = 8  # of the files that the process may have open, connections may have one in so many
REQUEST_SECONDS = 5.0  # from a connection's start to the end of its request's headers
ANSWER_SECONDS = 10.0  # from there to the end of its answer
STOP_SECONDS = 2.0  # for the answers under way at the end
PAUSE_SECONDS = 0.2  # where no connection can be taken
TELL_SECONDS = 60.0  # between log lines about the same trouble
LINE_BYTES = 4096  # of the request's first line, and of each header
SILENT = logging.Logger("silent", logging.CRITICAL + 1)  # what strangers send is no news, and may be sent without end


class Door:
    """Serves an application on a listening socket.

    Where there are too many connections, the one that has been without a request for the longest makes room: whoever
    asks is answered, whatever others hold open.
    """

    def __init__(self, app: web.Application, listening: socket.socket) -> None:
        self._listening = listening
        listening.setblocking(False)
        app.middlewares.append(self._once)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        self._most = most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._idle: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}  # no request yet; the oldest first
        self._asking: dict[asyncio.BaseTransport, asyncio.TimerHandle] = {}
        self._told: dict[str, float] = {}

    async def open(self) -> None:
        """Begins to take connections."""
        await self._runner.setup()
        self._accepting = asyncio.create_task(self._accept())

    async def cleanup(self) -> None:
        """Takes no more connections, and ends those that there are."""
        self._accepting.cancel()
        with suppress(asyncio.CancelledError):
            await self._accepting
        self._listening.close()
        for transport in list(self._idle):
            _abort(transport)
        await self._runner.cleanup()

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """A connection has come."""
        if len(self._idle) + len(self._asking) >= self._most:
            self._tell(f"there are over {self._most} HTTP connections at once: those that ask nothing are closed")
            oldest = next(iter(self._idle or self._asking))
            self.closed(oldest)
            _abort(oldest)
        self._idle[transport] = self._end_later(transport, REQUEST_SECONDS)

    def closed(self, transport: asyncio.BaseTransport) -> None:
        """A connection is gone."""
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
                self._tell(f"no HTTP connection can be taken: {error.strerror}")
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            try:
                await loop.connect_accepted_socket(lambda: _Connection(self, server, loop), taken)
            except OSError:
                taken.close()  # its other end is gone already

    @web.middleware
    async def _once(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answers one request, and ends the connection with the answer: nothing is kept open for later."""
        if request.transport is not None and (timer := self._idle.pop(request.transport, None)) is not None:
            timer.cancel()
            self._asking[request.transport] = self._end_later(request.transport, ANSWER_SECONDS)
        try:
            answer = await handler(request)
        except web.HTTPException as refusal:
            refusal.force_close()
            raise
        except Exception:
            log.exception("an HTTP request met an error of the controller's own")
            answer = web.Response(status=500, text="an error of the controller's own: its log has it\n")
        answer.force_close()
        return answer

    def _end_later(self, transport: asyncio.BaseTransport, seconds: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, _abort, transport)

    def _tell(self, trouble: str) -> None:
        now = time.monotonic()
        if now - self._told.get(trouble, -TELL_SECONDS) >= TELL_SECONDS:
            self._told[trouble] = now
            log.warning(trouble)


class _Connection(web.RequestHandler):
    """aiohttp's side of one connection, which tells the door of its beginning and its end."""

    __slots__ = ("_door", "_held")

    def __init__(self, door: Door, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            logger=SILENT,
            access_log=None,  # type: ignore[arg-type]  # as AppRunner takes it
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            lingering_time=0,
        )
        self._door = door
        self._held: asyncio.BaseTransport | None = None  # aiohttp forgets it before it is lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._held = transport
        self._door.opened(transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._held is not None:
            self._door.closed(self._held)
        super().connection_lost(exc)


def most_connections(files: int) -> int:
    """How many connections there may be at once, where the process may have so many files open (-1: any number)."""
    return CONNECTIONS if files < 0 else max(4, min(CONNECTIONS, files // SHARE))


def _abort(transport: asyncio.BaseTransport) -> None:
    if isinstance(transport, asyncio.Transport):
        transport.abort()
