"""Reads the end of a pod's log in bounded memory, and saves it if somebody else deletes the pod."""

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
SAVING_SECONDS = 15.0  # for which an outcome waits for a log that is being saved
SAVED_BYTES = 64 << 20  # of all saved logs together
READ = aiohttp.ClientTimeout(total=120, sock_read=15)
KUBELET_ERROR = re.compile(  # the kubelet sends these with status 200 in place of a log that is gone
    r"(failed to try resolving symlinks in path|failed to open log file|unable to retrieve container logs for) .*"
)
KUBELET_ERROR_BYTES = 2000


class PodLogTail:
    """Consumes a log and keeps its last `limit` bytes; `first` is the line that a complete log begins with."""

    def __init__(self, limit: int, first: str) -> None:
        self._limit, self._first = limit, f"{first}\n".encode()
        self._head = b""
        self._tail = bytearray()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Consumes the next bytes."""
        if len(self._head) < len(self._first):
            self._head += chunk[: len(self._first) - len(self._head)]
        self._tail += chunk
        self._size += len(chunk)
        if len(self._tail) > 2 * (self._limit + len(self._first)):
            del self._tail[: len(self._tail) - self._limit - len(self._first)]

    def is_kubelet_error(self) -> bool:
        """Whether this is the kubelet's message about a log that it does not have."""
        if self._head == self._first or self._size > KUBELET_ERROR_BYTES:
            return False
        return KUBELET_ERROR.fullmatch(self._tail.decode("utf-8", "replace").strip()) is not None

    def output(self) -> Output:
        """The output that was kept. If the first line is missing, the node has dropped the log's beginning."""
        whole = self._head == self._first
        size = self._size - len(self._first) * whole
        tail = bytes(self._tail[max(len(self._tail) - min(self._limit, size), 0) :])
        return Output(tail, not whole or size > self._limit)


class Logs:
    """Reads logs, a few at a time, and saves that of a run whose pod somebody else deletes."""

    def __init__(self, api: Api, limit: int) -> None:
        self._api, self._limit = api, limit
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._saved: dict[str, Output] = {}  # by run_uid
        self._saving: dict[str, asyncio.Task[None]] = {}

    async def read(self, name: str, first: str, limit: int) -> Output:
        """The end of a pod's log. Raises RunNotFoundError if the node does not have it."""
        tail = PodLogTail(limit, first)
        lines = str(limit + len(first) + 1)  # a line has at least one byte, so this many suffice
        query: Mapping[str, str] = {"container": CONTAINER, "tailLines": lines}
        try:
            async with self._turns, self._api.request("GET", f"pods/{name}/log", query=query, timeout=READ) as response:
                async for chunk in response.content.iter_any():
                    tail.feed(chunk)
        except ResponseError as error:
            if is_no_log(error):
                raise RunNotFoundError(error.message) from error
            raise
        if tail.is_kubelet_error():
            raise RunNotFoundError("its node no longer has its log")
        return tail.output()

    def save(self, run_uid: str, name: str, first: str) -> None:
        """Starts to save a log, which the node drops as soon as the run has ended."""
        task = self._saving[run_uid] = asyncio.create_task(self._save(run_uid, name, first))
        task.add_done_callback(lambda _: self._saving.pop(run_uid, None))

    async def _save(self, run_uid: str, name: str, first: str) -> None:
        try:
            output = await self.read(name, first, self._limit)
        except (EngineError, RunNotFoundError):
            return
        self._saved[run_uid] = Output(output.tail, True)  # the run went on writing
        while sum(len(one.tail) for one in self._saved.values()) > SAVED_BYTES:
            del self._saved[next(iter(self._saved))]

    async def saved(self, run_uid: str) -> Output | None:
        """The saved output of that run, or None."""
        if (task := self._saving.get(run_uid)) is not None:
            await asyncio.wait({task}, timeout=SAVING_SECONDS)
        return self._saved.get(run_uid)

    def drop(self, run_uid: str) -> None:
        """Discards the saved output of that run."""
        self._saved.pop(run_uid, None)

    async def close(self) -> None:
        """Cancels what is being saved."""
        saving = list(self._saving.values())
        for task in saving:
            task.cancel()
        await asyncio.gather(*saving, return_exceptions=True)
