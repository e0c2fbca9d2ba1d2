"""Runs attempts as processes of this host, without isolation: for a first try and for tests.

A request's image, cpu and network have no effect here. Its memory limits each process (RLIMIT_DATA), its disk each file
(RLIMIT_FSIZE); a command that reaches a limit ends by itself. Its environment is the request's, with defaults for PATH,
HOME and TMPDIR, and `_SANDBOX_RUN`, which identifies its processes. If a run's supervisor was killed, an orphan without
that variable is not found; outside Linux none is.
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

TIDY_SECONDS = 60.0
ANSWER_SECONDS = 5.0  # for a supervisor to end its run, before the run is killed without it
DEATH_SECONDS = 15.0  # for a run's processes to end, before `delete` reports that they have not

Result = TypeVar("Result")


class ProcessBackend:
    """Runs each attempt under a detached supervisor, which outlives the controller. It lists every `list_seconds`."""

    at_once, launching = 16, 32

    def __init__(self, work_dir: Path, *, output_bytes: int = 1 << 20, list_seconds: float = 1.0) -> None:
        self._work_dir = work_dir.absolute()
        self._output_bytes, self._list_seconds = output_bytes, list_seconds
        self._installed: RunDirectory | None = None
        self._identity = ""
        self.marks: ProcessMarks | None = None
        self._workers = ThreadPoolExecutor(4, "process-backend")
        self._removers = ThreadPoolExecutor(2, "process-removal")

    async def open(self, installation: UUID) -> str:
        """Creates the work directory, which holds this host's identity."""
        runs = RunDirectory(self._work_dir, installation)
        self._identity = await self._in_work_dir(runs.prepare)
        self._installed = runs
        self.marks = ProcessMarks(self._work_dir, installation)
        return self._identity

    async def ping(self) -> None:
        """Checks that the work directory is still the same, and writable."""
        if await self._in_work_dir(self._runs.check) != self._identity:
            raise BackendUnavailableError(
                f"SANDBOX_WORK_DIR = {self._work_dir} is not the directory that this controller started with: "
                "restart the controller"
            )

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Creates the run's directory, or finds the existing one."""
        request = request_bytes(launch, uuid.uuid4().hex, self._output_bytes)
        return await self._in_thread(lambda: self._runs.create(launch.key, request, look_first=look))

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts a supervisor, which takes the run unless the run is another by then, or was taken."""
        await self._in_thread(lambda: self._runs.release(key, run_uid))

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Lists every `list_seconds`. In between it yields each run whose supervisor writes to the wakeup FIFO."""
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
                    due = loop.time() + self._list_seconds
                for seen in await self._changes(await wakeup.wait(due - loop.time()), uids):
                    uids[seen.key.name] = seen.run_uid
                    yield seen
        finally:
            wakeup.close()

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """The end of the run's output."""
        return await self._in_thread(lambda: self._runs.output(key, run_uid, limit))

    async def kill(self, key: Key, run_uid: str) -> None:
        """Has the supervisor kill the run; an inert run can then never start."""
        await self._in_thread(lambda: self._runs.kill(key, run_uid))

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Ends the run, moves its directory to the trash, and then removes it there."""
        begun, pause = time.monotonic(), 0.005
        while True:
            try:
                trashed = await self._in_thread(lambda: self._runs.move_to_trash(key, run_uid))
            except RunNotFoundError:
                return
            if trashed is not None:
                break
            if time.monotonic() > begun + DEATH_SECONDS:
                raise TransientEngineError(
                    f"the processes of {key.name} have not ended {DEATH_SECONDS:.0f} s after SIGKILL"
                )
            if time.monotonic() > begun + ANSWER_SECONDS:
                await self._in_thread(lambda: self._runs.kill_all_processes(key, run_uid))
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        loop = asyncio.get_running_loop()
        with _host_errors_are_transient():
            await loop.run_in_executor(self._removers, empty_trash, self._runs.trash, [trashed])

    async def close(self) -> None:
        """Ends this backend's threads; the next controller removes what they leave in the trash."""
        self._installed = None
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._removers.shutdown(wait=False, cancel_futures=True)

    @property
    def _runs(self) -> RunDirectory:
        if self._installed is None:
            raise BackendClosedError
        return self._installed

    async def _changes(self, names: set[str], uids: dict[str, str]) -> list[ObservedRun]:
        """The state of the runs with these names, without those of other installations."""
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
    """Raises TransientEngineError if the host lacks disk space, file descriptors, processes or memory."""
    try:
        yield
    except OSError as error:
        raise TransientEngineError(f"this host cannot do it now: {error}") from error
