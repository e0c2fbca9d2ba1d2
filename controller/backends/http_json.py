"""HTTP with an engine: JSON answers, answers of one JSON object a line that go on, and error statuses."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import aiohttp

from controller.errors import EngineError, TransientEngineError

LINE_BYTES = 4 << 20  # one object of a watch, one event
Json = Mapping[str, Any]
P = ParamSpec("P")
T = TypeVar("T")


class ResponseError(EngineError):
    """The engine answered with an error status.

    Whether that may pass depends on the request: `docker/errors.py` and `kubernetes/errors.py` decide.
    `message`: the engine's own words.
    """

    def __init__(self, who: str, status: int, message: str) -> None:
        super().__init__(f"{who} says: {message}")
        self.status, self.message = status, message


@contextmanager
def transient_errors() -> Iterator[None]:
    """Raises TransientEngineError for an error status that nothing in the block handled: it may pass."""
    try:
        yield
    except ResponseError as error:
        raise TransientEngineError(str(error)) from error


def verb(call: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Decorates a backend's verb, so that it raises the errors of `base.Backend` and no ResponseError."""

    @wraps(call)
    async def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        with transient_errors():
            return await call(*args, **kwargs)

    return kept


class JsonClient(ABC):
    """An HTTP client of an engine. `who`: the engine's name in messages.

    Every request raises ResponseError if the answer is an error status, and TransientEngineError if no answer comes.
    """

    who: str

    @abstractmethod
    def request(self, *args: Any, **kwargs: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Sends one request; its answer is read inside the block."""

    async def json(self, method: str, path: str, **more: Any) -> Any:
        """The answer to a request, decoded."""
        async with self.request(method, path, **more) as response:
            return _decoded(await response.read(), self.who)

    async def send(self, method: str, path: str, **more: Any) -> None:
        """Sends a request whose answer says nothing beyond its success."""
        async with self.request(method, path, **more) as response:
            await response.read()

    async def find(self, path: str) -> Json | None:
        """One object, or None if it does not exist."""
        try:
            found: Json = await self.json("GET", path)
        except ResponseError as error:
            if error.status == 404:
                return None
            raise
        return found

    def lines(self, response: aiohttp.ClientResponse) -> Lines:
        """The JSON objects of an answer that goes on."""
        return Lines(response, self.who)


class Lines:
    """Reads an answer of one JSON object per line, which may go on for ever. `who` sends it."""

    def __init__(self, response: aiohttp.ClientResponse, who: str) -> None:
        self._content, self._who = response.content, who
        self._rest = b""

    async def read(self, seconds: float) -> list[Any] | None:
        """Waits up to so many seconds for objects; returns those that came, and None at the end of the answer."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    chunk = await self._content.readany()
                    if not chunk:
                        return None
                    *whole, self._rest = (self._rest + chunk).split(b"\n")
                    if len(self._rest) > LINE_BYTES:
                        raise TransientEngineError(f"{self._who} sends a line that does not end")
                    objects = [_decoded(line, self._who) for line in whole if line.strip()]
                    if objects:
                        return objects
        except TimeoutError:
            return []


def parse_time(text: str | None, *, never: int) -> datetime | None:
    """A time as an engine writes it, or None if there is none; `never`: the year that it writes for that."""
    moment = datetime.fromisoformat(text) if text else None
    return moment if moment is not None and moment.year > never else None


def _decoded(raw: bytes, who: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise TransientEngineError(
            f"the answer of {who} is not JSON: something else listens there, or it was cut off"
        ) from error
