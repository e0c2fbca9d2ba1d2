"""The end of a pod's log, of whatever length, in memory of a fixed size; saved where somebody deletes its pod."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

import aiohttp

from controller.backends.http_json import ResponseError
from controller.backends.kubernetes.api import Api
from controller.backends.kubernetes.errors import is_no_log
from controller.backends.kubernetes.manifest import CONTAINER
from controller.errors import EngineError, RunNotFoundError
from controller.protocol.model import Output

AT_ONCE = 8  # logs read at a time
SAVING_SECONDS = 15.0  # that an outcome waits for a log that is being saved
SAVED_BYTES = 64 << 20  # of logs saved before their pods went, over all
READ = aiohttp.ClientTimeout(total=120, sock_read=15)
SAID = re.compile(  # a kubelet's own words, which it sends with status 200 in the place of a log that is gone
    r"(failed to try resolving symlinks in path|failed to open log file|unable to retrieve container logs for) .*"
)
SAID_BYTES = 2000


class PodLogTail:
    """Takes a log as it comes and keeps its last `limit` bytes; `first` is the line that it began with."""

    def __init__(self, limit: int, first: str) -> None:
        self._limit, self._first = limit, f"{first}\n".encode()
        self._head = b""
        self._tail = bytearray()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        if len(self._head) < len(self._first):
            self._head += chunk[: len(self._first) - len(self._head)]
        self._tail += chunk
        self._size += len(chunk)
        if len(self._tail) > 2 * (self._limit + len(self._first)):
            del self._tail[: len(self._tail) - self._limit - len(self._first)]

    def is_excuse(self) -> bool:
        """Whether these are the node's words for a log that it has no more."""
        if self._head == self._first or self._size > SAID_BYTES:
            return False
        return SAID.fullmatch(self._tail.decode("utf-8", "replace").strip()) is not None

    def output(self) -> Output:
        """What was kept. Without its first line, the node had dropped the log's beginning."""
        whole = self._head == self._first
        size = self._size - len(self._first) * whole
        tail = bytes(self._tail[max(len(self._tail) - min(self._limit, size), 0) :])
        return Output(tail, not whole or size > self._limit)


class Logs:
    """Reads logs, few at a time. That of a run that somebody else deletes is saved before it goes with its pod."""

    def __init__(self, api: Api, limit: int) -> None:
        self._api, self._limit = api, limit
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._saved: dict[str, Output] = {}  # by run_uid
        self._saving: dict[str, asyncio.Task[None]] = {}

    async def read(self, name: str, first: str, limit: int) -> Output:
        """The end of a pod's log. Raises RunNotFoundError where the node has none."""
        tail = PodLogTail(limit, first)
        lines = str(limit + len(first) + 1)  # no line is without a byte: more of them cannot matter
        query: Mapping[str, str] = {"container": CONTAINER, "tailLines": lines}
        try:
            async with self._turns, self._api.request("GET", f"pods/{name}/log", query=query, timeout=READ) as response:
                async for chunk in response.content.iter_any():
                    tail.feed(chunk)
        except ResponseError as error:
            if is_no_log(error):
                raise RunNotFoundError(error.message) from error
            raise
        if tail.is_excuse():
            raise RunNotFoundError("its node no longer has its log")
        return tail.output()

    def save(self, run_uid: str, name: str, first: str) -> None:
        """Begins to save a log: its node drops it as soon as the run has ended."""
        task = self._saving[run_uid] = asyncio.create_task(self._save(run_uid, name, first))
        task.add_done_callback(lambda _: self._saving.pop(run_uid, None))

    async def _save(self, run_uid: str, name: str, first: str) -> None:
        try:
            output = await self.read(name, first, self._limit)
        except (EngineError, RunNotFoundError):
            return
        self._saved[run_uid] = Output(output.tail, True)  # the run wrote on
        while sum(len(one.tail) for one in self._saved.values()) > SAVED_BYTES:
            del self._saved[next(iter(self._saved))]

    async def saved(self, run_uid: str) -> Output | None:
        """What was saved of that run."""
        if (task := self._saving.get(run_uid)) is not None:
            await asyncio.wait({task}, timeout=SAVING_SECONDS)
        return self._saved.get(run_uid)

    def drop(self, run_uid: str) -> None:
        """Lets go of what was saved of it."""
        self._saved.pop(run_uid, None)

    async def close(self) -> None:
        """Stops saving."""
        saving = list(self._saving.values())
        for task in saving:
            task.cancel()
        await asyncio.gather(*saving, return_exceptions=True)
