"""The fake engine as a process of its own, so that it outlives the controllers that tests kill."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from controller.errors import BackendUnavailableError, TransientEngineError
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output
from tests.support.memory_backend import MemoryBackend, MemoryEngine

HEAD = 4  # bytes of a message's length


async def send(writer: asyncio.StreamWriter, message: Any) -> None:
    """One message over the socket."""
    body = pickle.dumps(message)
    writer.write(len(body).to_bytes(HEAD) + body)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises asyncio.IncompleteReadError where the other side is gone."""
    length = int.from_bytes(await reader.readexactly(HEAD))
    return pickle.loads(await reader.readexactly(length))


async def serve(path: Path) -> None:
    """Serves one engine until killed: a connection a call, or one that observes."""
    engine = MemoryEngine(identity="memory:remote")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        backend = MemoryBackend(engine, list_seconds=1.0)
        await backend.open(uuid4())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            verb, words, named = await receive(reader)
            if verb == "observe":
                async for sight in backend.observe():
                    await send(writer, sight)
            elif verb.startswith("marks."):
                await send(writer, (True, await getattr(backend.marks, verb.removeprefix("marks."))(*words)))
            elif verb == "starts":
                await send(writer, (True, dict(engine.starts)))
            else:
                try:
                    await send(writer, (True, await getattr(backend, verb)(*words, **named)))
                except Exception as error:
                    await send(writer, (False, error))
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        await server.serve_forever()


def run(path: Path) -> None:
    """Serves one engine on that socket until killed."""
    asyncio.run(serve(path))


class RemoteMarks:
    """The marks over that socket."""

    advice = "give the copy another identity"

    def __init__(self, backend: RemoteBackend) -> None:
        self._backend = backend

    async def names(self) -> set[str]:
        """Whose are there."""
        found: set[str] = await self._backend.call("marks.names")
        return found

    async def leave(self, controller: str) -> None:
        """Leaves one."""
        await self._backend.call("marks.leave", controller)

    async def remove(self, controller: str) -> None:
        """Takes it away."""
        await self._backend.call("marks.remove", controller)


class RemoteBackend:
    """The backend interface over that socket."""

    at_once, launching = MemoryBackend.at_once, MemoryBackend.launching

    def __init__(self, path: Path) -> None:
        self._path = path
        self.marks = RemoteMarks(self)

    async def open(self, installation: UUID) -> str:
        """The engine's identity."""
        found: str = await self.call("open", installation)
        return found

    async def ping(self) -> None:
        """Whether it is there."""
        try:
            await self.call("ping")
        except TransientEngineError as error:
            raise BackendUnavailableError(str(error)) from error

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Makes it inert."""
        made: ObservedRun | None = await self.call("create", launch, look=look)
        return made

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts it."""
        await self.call("release", key, run_uid)

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """What the engine says."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            try:
                await send(writer, ("observe", (), {}))
                while True:
                    yield await receive(reader)
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TransientEngineError(f"the engine is not there: {error}") from error

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """What it wrote."""
        found: Output = await self.call("output", key, run_uid, limit)
        return found

    async def kill(self, key: Key, run_uid: str) -> None:
        """Ends it."""
        await self.call("kill", key, run_uid)

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Removes it."""
        await self.call("delete", key, run_uid)

    async def close(self) -> None:
        """Each call had a connection of its own."""

    async def call(self, verb: str, *words: object, **named: object) -> Any:
        """Asks the engine for one thing."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path)
            try:
                await send(writer, (verb, words, named))
                good, answer = await receive(reader)
            finally:
                writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise TransientEngineError(f"the engine is not there: {error}") from error
        if not good:
            raise answer
        return answer
