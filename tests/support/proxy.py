"""A TCP proxy before Postgres (on TCP or a Unix socket) that can go silent, as a dead peer's kernel never says so."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict


class Proxy:
    """Forwards connections; what it silences stays open, and nothing comes through any more."""

    def __init__(self, url: str) -> None:
        given = self._lead_to(url)
        self._login = given["user"] + (f":{given['password']}" if given.get("password") else "")
        self._dbname = given["dbname"]
        self._open: list[tuple[asyncio.Event, asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._mute = False
        self.accepted = 0
        self.held_back = asyncio.Event()  # something was sent on a connection that is silent

    @property
    def url(self) -> str:
        """The same database, by way of the proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://{self._login}@127.0.0.1:{port}/{self._dbname}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def silence(self) -> None:
        """From now on nothing passes on the connections that are open; new ones work."""
        for loud, _, _ in self._open:
            loud.clear()

    def mute(self) -> None:
        """From now on nothing passes on new connections either."""
        self._mute = True

    def cut(self) -> None:
        """Closes every connection."""
        for _, client, server in self._open:
            client.close()
            server.close()
        self._open.clear()

    def lead_to(self, url: str) -> None:
        """Closes every connection; new ones lead to that server, with the database and login of before."""
        self._lead_to(url)
        self.cut()

    def _lead_to(self, url: str) -> dict[str, str]:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        self._host, self._port = given.get("host", "localhost"), given.get("port", "5432")
        return given

    async def refuse(self) -> None:
        """Takes no more connections, and closes those that are open."""
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._host.startswith("/"):
            behind = await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._port}")
        else:
            behind = await asyncio.open_connection(self._host, int(self._port))
        loud = asyncio.Event()
        if not self._mute:
            loud.set()
        self._open.append((loud, writer, behind[1]))
        for source, target in ((reader, behind[1]), (behind[0], writer)):
            task = asyncio.create_task(self._pass(source, target, loud))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, loud: asyncio.Event) -> None:
        try:
            while chunk := await source.read(65_536):
                if not loud.is_set():
                    self.held_back.set()
                await loud.wait()
                target.write(chunk)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()
