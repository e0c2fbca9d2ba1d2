"""The directory of one installation's runs on this host, which supervisors and controllers share."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import controller
from controller.backends.process import run_files
from controller.backends.process.orphans import kill_marked_processes
from controller.backends.process.run_status import RunStatus, read_output, read_status
from controller.backends.process.trash import empty_trash
from controller.errors import BackendUnavailableError, RunNotFoundError, TransientEngineError
from controller.protocol.model import Key, Listing, ObservedRun, Output, Phase

START = (
    "import os, sys; sys.path.append(sys.argv[1]); from controller.backends.process.supervisor import main; "
    "main(*sys.argv[2:]); os._exit(0)"
)
SUPERVISE = ("-I", "-S", "-c", START)  # no environment, no site, and no script, which each start would compile again
MODULES = str(Path(controller.__file__).resolve().parent.parent)
STALE_SECONDS = 3600.0
TRIES = 5


class RunDirectory:
    """The operations on runs. None of them waits, and other controllers may do the same at the same time."""

    def __init__(self, work_dir: Path, installation: UUID) -> None:
        self.root = work_dir / "runs" / str(installation)
        self.staging = work_dir / "new"
        self.trash = work_dir / "trash"
        self.wake = work_dir / "wake"
        self._identity = work_dir / "engine"
        self._supervisors: set[int] = set()
        self._over: dict[
            str, tuple[int, int, ObservedRun]
        ] = {}  # what changes no more, with its directory's inode and time

    def prepare(self) -> str:
        """Creates the directories; returns this host's identity, the same for all controllers that share them."""
        if not hasattr(os, "waitid"):
            raise BackendUnavailableError("SANDBOX_BACKEND=process needs os.waitid: Linux, or macOS with Python 3.13")
        for directory in (self.root, self.staging, self.trash, self.wake):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.staging / uuid.uuid4().hex
        _write(draft, str(uuid.uuid4()).encode())
        try:
            with suppress(FileExistsError):
                os.link(draft, self._identity)
        finally:
            draft.unlink()
        return self._host()

    def check(self) -> str:
        """Checks that runs can still be created; returns this host's identity. Raises OSError if they cannot."""
        for directory in (self.root, self.staging, self.trash, self.wake):
            if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
                os.stat(directory)  # raises FileNotFoundError if it is gone
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
        return self._host()

    def _host(self) -> str:
        try:
            return f"process:{UUID(self._identity.read_text())}"
        except ValueError as error:
            raise BackendUnavailableError(
                f"{self._identity} is damaged: remove it while no sandbox runs on this host"
            ) from error

    def create(self, key: Key, request: bytes, *, look_first: bool) -> ObservedRun:
        """Puts a complete directory in place by one rename, unless the attempt has one already."""
        for attempt in range(TRIES):
            if not (look_first and attempt == 0):
                self._place(key.name, request)
            with suppress(FileNotFoundError), self._opened(key.name) as directory:
                found = read_status(directory, key)
                if found is not None:
                    return self._settled([found])[0]
                self._discard(key.name, directory)
        raise TransientEngineError(f"{key.name} is being created and removed by other controllers")

    def release(self, key: Key, run_uid: str) -> None:
        """Starts a supervisor, which takes the run unless the run is another by then, or was taken."""
        self.reap()
        with self._opened_run(key, run_uid) as (_, found):
            if found.observed.phase is not Phase.INERT:
                return
        arguments = [MODULES, str(self.root / key.name), run_uid, str(self.wake)]
        self._supervisors.add(spawn_supervisor([sys.executable, *SUPERVISE, *arguments], run_uid))

    def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """The end of the run's output."""
        with self._opened_run(key, run_uid) as (directory, _):
            return read_output(directory, limit)

    def kill(self, key: Key, run_uid: str) -> None:
        """Makes sure that an inert run never starts, and has the supervisor kill a live one."""
        with suppress(RunNotFoundError), self._opened_run(key, run_uid) as (directory, found):
            self._end(directory, found)

    def move_to_trash(self, key: Key, run_uid: str | None) -> str | None:
        """Moves an ended run to the trash and returns its name there; has a live one killed and returns None."""
        self.reap()
        try:
            with self._opened(key.name) as directory:
                found = read_status(directory, key)
                if run_uid is not None and (found is None or found.observed.run_uid != run_uid):
                    raise RunNotFoundError(f"no run {run_uid} of {key.name}")
                if found is not None and not self._end(directory, found):
                    return None
                name = self._discard(key.name, directory)
        except FileNotFoundError as error:
            raise RunNotFoundError(f"no run {run_uid} of {key.name}") from error
        run_files.wake(str(self.wake), key.name)
        return name

    def kill_all_processes(self, key: Key, run_uid: str | None) -> None:
        """Kills all processes of a run, including its supervisor, which did not react."""
        with suppress(RunNotFoundError), self._opened_run(key, run_uid) as (_, found):
            kill_marked_processes([found.observed.run_uid])

    def listing(self) -> Listing:
        """The state of every run."""
        begun = time.monotonic()
        self.reap()
        with os.scandir(self.root) as entries:
            keys = {entry.name: key for entry in entries if (key := Key.of_name(entry.name))}
        for name in self._over.keys() - keys.keys():
            self._over.pop(name, None)
        return Listing(tuple(self.look_at(keys.values())), begun)

    def look_at(self, keys: Iterable[Key]) -> list[ObservedRun]:
        """The state of these runs, without those that are gone and directories that are not a run's."""
        over: list[ObservedRun] = []
        looks: list[tuple[RunStatus, os.stat_result]] = []
        for key in keys:
            with suppress(FileNotFoundError), self._opened(key.name) as directory:
                status = os.fstat(directory)
                known = self._over.get(key.name)
                if known and known[:2] == (status.st_ino, status.st_mtime_ns):
                    over.append(known[2])
                elif found := read_status(directory, key):
                    looks.append((found, status))
        settled = self._settled([found for found, _ in looks])
        for seen, (_, status) in zip(settled, looks, strict=True):
            if seen.phase in (Phase.ENDED, Phase.NEVER_STARTED):
                self._over[seen.key.name] = (status.st_ino, status.st_mtime_ns, seen)
        return over + settled

    def tidy(self) -> None:
        """Removes what crashed controllers left."""
        for name in os.listdir(self.staging):
            with suppress(OSError):
                if time.time() - os.stat(self.staging / name).st_mtime > STALE_SECONDS:
                    os.rename(self.staging / name, self.trash / name)
        empty_trash(self.trash, os.listdir(self.trash))

    def reap(self) -> None:
        """Reaps supervisors that have ended."""
        for pid in list(self._supervisors):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                ended = True
            if ended:
                self._supervisors.discard(pid)

    def _place(self, name: str, request: bytes) -> None:
        draft = self.staging / uuid.uuid4().hex
        draft.mkdir(mode=0o700)
        try:
            for directory in (run_files.WORK, run_files.TEMPORARY):
                (draft / directory).mkdir(mode=0o700)
            os.mkfifo(draft / run_files.CONTROL, 0o600)
            _write(draft / run_files.DRAFT, bytes(run_files.RECORD_BYTES))
            _write(draft / run_files.INERT, request)
            os.rename(draft, self.root / name)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            if error.errno == errno.ENOTDIR:
                (self.root / name).unlink(missing_ok=True)
            elif error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        """Opens the directory of that name: the descriptor stays with it, whatever takes its name later."""
        path = self.root / name
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        try:
            try:
                directory = os.open(path, flags)
            except PermissionError:
                os.chmod(path, 0o700)  # its command removed the permissions
                directory = os.open(path, flags)
        except NotADirectoryError as error:
            raise FileNotFoundError(path) from error
        try:
            yield directory
        finally:
            os.close(directory)

    @contextmanager
    def _opened_run(self, key: Key, run_uid: str | None) -> Iterator[tuple[int, RunStatus]]:
        """Opens that run. Raises RunNotFoundError if it does not exist."""
        try:
            with self._opened(key.name) as directory:
                found = read_status(directory, key)
                if found is None or run_uid not in (None, found.observed.run_uid):
                    raise RunNotFoundError(f"no run {run_uid} of {key.name}")
                yield directory, found
        except FileNotFoundError as error:
            raise RunNotFoundError(f"no run {run_uid} of {key.name}") from error

    def _end(self, directory: int, found: RunStatus) -> bool:
        """Whether no process of the run lives or ever will. If one does, asks the supervisor to end it."""
        if found.observed.phase is Phase.INERT:
            with suppress(FileNotFoundError):
                os.rename(run_files.INERT, run_files.NEVER, src_dir_fd=directory, dst_dir_fd=directory)
                run_files.wake(str(self.wake), found.observed.key.name)
                return True
            return False  # a supervisor was faster
        if found.orphaned:
            return kill_marked_processes([found.observed.run_uid])
        if found.alive and found.observed.phase is not Phase.ENDED:
            asked = os.open(run_files.KILL, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=directory)
            os.write(asked, run_files.BY_CONTROLLER)
            os.close(asked)
            with suppress(OSError):  # no reader: the supervisor starts right now, and will find the file
                control = os.open(run_files.CONTROL, os.O_WRONLY | os.O_NONBLOCK, dir_fd=directory)
                os.write(control, b"k")
                os.close(control)
        return not found.alive

    def _settled(self, looks: list[RunStatus]) -> list[ObservedRun]:
        """What may be reported of these runs: an orphaned one has ended only when its processes have."""
        orphans = {found.observed.run_uid for found in looks if found.orphaned}
        if not orphans or kill_marked_processes(orphans):
            return [found.observed for found in looks]
        return [
            replace(found.observed, phase=Phase.RUNNING, outcome=None) if found.orphaned else found.observed
            for found in looks
        ]

    def _discard(self, name: str, directory: int) -> str | None:
        """Moves that directory to the trash; None if another controller is doing so."""
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by whoever moves it
            if os.stat(self.root / name, follow_symlinks=False).st_ino != os.fstat(directory).st_ino:
                return None
            discarded = uuid.uuid4().hex
            os.rename(self.root / name, self.trash / discarded)
        except (BlockingIOError, FileNotFoundError):
            return None
        return discarded


def _write(path: Path, content: bytes) -> None:
    """Creates a file durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def spawn_supervisor(argv: list[str], run_uid: str) -> int:
    """Starts a detached process that inherits nothing from this one; returns its pid."""
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    environment = {run_files.MARKER: run_uid}
    default = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawn(argv[0], argv, environment, file_actions=null, setsid=True, setsigmask=(), setsigdef=default)
