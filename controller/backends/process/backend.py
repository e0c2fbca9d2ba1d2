"""Runs attempts as processes of this host: the embedded default, for a first try and for tests. It isolates nothing.

A request's image, cpu and network mean nothing here. Its memory limits each process (RLIMIT_DATA), its disk each file
(RLIMIT_FSIZE); a command that hits one ends by itself. Its environment is the request's, with defaults for PATH, HOME
and TMPDIR, and `_SANDBOX_RUN`, by which its processes are found. An orphan without that variable, of a run whose
supervisor was killed, is not found; nor is any outside Linux.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from controller.backends.process.marks import ProcessMarks
from controller.backends.process.run_status import request_bytes
from controller.backends.process.runs import RunDirectory
from controller.backends.process.trash import empty_trash
from controller.backends.process.wakeup import WakeupFifo
from controller.errors import BackendClosedError, BackendUnavailableError, RunNotFoundError, TransientEngineError
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Output, Phase

POLL_SECONDS = 1.0
TIDY_SECONDS = 60.0
ANSWER_SECONDS = 5.0
DEATH_SECONDS = 15.0

Result = TypeVar("Result")


class ProcessBackend:
    """Runs each attempt under a detached supervisor, which outlives the controller."""

    at_once, launching = 16, 32

    def __init__(self, work_dir: Path, *, output_bytes: int = 1 << 20) -> None:
        self._work_dir = work_dir.absolute()
        self._output_bytes = output_bytes
        self._installed: RunDirectory | None = None
        self._identity = ""
        self.marks: ProcessMarks | None = None
        self._workers = ThreadPoolExecutor(4, "process-backend")
        self._removers = ThreadPoolExecutor(2, "process-removal")

    async def open(self, installation: UUID) -> str:
        """Makes the work directory, which holds this host's identity."""
        runs = RunDirectory(self._work_dir, installation)
        self._identity = await self._in_work_dir(runs.prepare)
        self._installed = runs
        self.marks = ProcessMarks(self._work_dir, installation)
        return self._identity

    async def ping(self) -> None:
        """Looks whether the work directory is still that one, and can still be written to."""
        if await self._in_work_dir(self._runs.check) != self._identity:
            raise BackendUnavailableError(
                f"SANDBOX_WORK_DIR = {self._work_dir} is another than at the start: restart the controller"
            )

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Makes the run's directory, or finds the one that is there."""
        request = request_bytes(launch, uuid.uuid4().hex, self._output_bytes)
        return await self._in_thread(lambda: self._runs.create(launch.key, request, look_first=look))

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts a supervisor; it takes the run if it is still that one and no other took it."""
        await self._in_thread(lambda: self._runs.release(key, run_uid))

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Lists every second, and between tells of each run whose supervisor rang."""
        loop, runs = asyncio.get_running_loop(), self._runs
        with _host_errors_are_transient():
            wakeup = WakeupFifo(runs.wake, runs.staging)
        try:
            tidy = due = loop.time()
            uids: dict[str, str] = {}
            while True:
                if loop.time() >= tidy:
                    self._removers.submit(runs.tidy)
                    tidy = loop.time() + TIDY_SECONDS
                if loop.time() >= due:
                    listing = await self._in_thread(runs.listing)
                    uids = {seen.key.name: seen.run_uid for seen in listing.runs}
                    yield listing
                    due = loop.time() + POLL_SECONDS
                for seen in await self._changes(await wakeup.wait(due - loop.time()), uids):
                    uids[seen.key.name] = seen.run_uid
                    yield seen
        finally:
            wakeup.close()

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """The end of what the run wrote."""
        return await self._in_thread(lambda: self._runs.output(key, run_uid, limit))

    async def kill(self, key: Key, run_uid: str) -> None:
        """Has the supervisor kill the run; an inert one then never starts."""
        await self._in_thread(lambda: self._runs.kill(key, run_uid))

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Ends the run, moves its directory out of the way at once and then removes it."""
        begun, pause = time.monotonic(), 0.005
        while True:
            try:
                buried = await self._in_thread(lambda: self._runs.move_to_trash(key, run_uid))
            except RunNotFoundError:
                return
            if buried is not None:
                break
            if time.monotonic() > begun + DEATH_SECONDS:
                raise TransientEngineError(f"{key.name} does not die")
            if time.monotonic() > begun + ANSWER_SECONDS:
                await self._in_thread(lambda: self._runs.kill_all_processes(key, run_uid))
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        loop = asyncio.get_running_loop()
        with _host_errors_are_transient():
            await loop.run_in_executor(self._removers, empty_trash, self._runs.trash, [buried])

    async def close(self) -> None:
        """Ends this backend's threads; what they leave in the trash goes with the next controller."""
        self._installed = None
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._removers.shutdown(wait=False, cancel_futures=True)

    @property
    def _runs(self) -> RunDirectory:
        if self._installed is None:
            raise BackendClosedError
        return self._installed

    async def _changes(self, names: set[str], uids: dict[str, str]) -> list[ObservedRun]:
        """What became of the runs of these names; other installations' are not among them."""
        keys = {key for name in names if (key := Key.of_name(name))}
        if not keys:
            return []
        seen = await self._in_thread(lambda: self._runs.look_at(keys))
        gone = keys - {run.key for run in seen}
        return seen + [ObservedRun(key, uids[key.name], Phase.GONE) for key in gone if key.name in uids]

    async def _in_work_dir(self, work: Callable[[], str]) -> str:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)
        except OSError as error:
            raise BackendUnavailableError(
                f"SANDBOX_WORK_DIR = {self._work_dir} cannot be used ({error.strerror}): it takes a directory on a "
                "local disk that this user may write to"
            ) from error

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        with _host_errors_are_transient():
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)


@contextmanager
def _host_errors_are_transient() -> Iterator[None]:
    """Tells what the host refuses for want of room, files, processes or memory as TransientEngineError."""
    try:
        yield
    except OSError as error:
        raise TransientEngineError(f"this host has no room or no answer: {error}") from error
