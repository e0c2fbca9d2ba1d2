"""What the process backend does on its host beside single runs: ends orphans, removes trees, listens to supervisors."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from controller.backends.guest import files

SWEEP_SECONDS = 1.0
PASSES = 3


def spawn_supervisor(argv: list[str], run_uid: str) -> int:
    """Starts a detached process with nothing of this one's in it; returns its pid."""
    null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    environment = {files.MARKER: run_uid}
    default = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return os.posix_spawn(argv[0], argv, environment, file_actions=null, setsid=True, setsigmask=(), setsigdef=default)


def end_marked(run_uids: Iterable[str]) -> bool:
    """Kills every process that bears the mark of one of these runs; True once none is left.

    Only Linux tells other processes' environments: elsewhere there is nothing to find.
    """
    marks = {f"{files.MARKER}={run_uid}".encode() for run_uid in run_uids}
    give_up = time.monotonic() + SWEEP_SECONDS
    blank: set[int] = set()
    others: set[int] = set()
    while unknown := _processes() - others:  # until no process is new: one may fork and end before it is looked at
        marked = False
        for pid in unknown:
            environment = set(_environment(pid).split(b"\0"))
            if marks & environment:
                marked = True
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            elif environment != {b""} or pid in blank:
                others.add(pid)
            else:
                blank.add(pid)  # of the kernel, a zombie, or in the midst of an exec: one more look
        if time.monotonic() > give_up:
            return not marked
        time.sleep(0.001)
    return True


def _processes() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}
    except FileNotFoundError:
        return set()


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""  # gone, a zombie, or another user's


def empty_trash(trash: Path, names: Iterable[str]) -> None:
    """Removes trees in the trash, whatever a hostile command made of them.

    A directory in a directory is moved up beside its parent, so depth costs neither recursion nor a long path.
    """
    waiting = list(names)
    root = os.open(trash, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while waiting:
            name = waiting.pop()
            with suppress(OSError):  # what cannot be removed stays in the trash, out of everybody's way
                for _ in range(PASSES):
                    waiting += _flatten(root, name)
                    with suppress(OSError):
                        os.rmdir(name, dir_fd=root)
                        break
    finally:
        os.close(root)


def _flatten(root: int, name: str) -> list[str]:
    """Empties one directory of the trash; returns the new names there of the directories that were in it."""
    moved: list[str] = []
    os.chmod(name, 0o700, dir_fd=root)
    directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                with suppress(OSError):
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.name, dir_fd=directory)
                        continue
                    os.chmod(entry.name, 0o700, dir_fd=directory)
                    moved.append(uuid.uuid4().hex)
                    os.rename(entry.name, moved[-1], src_dir_fd=directory, dst_dir_fd=root)
    finally:
        os.close(directory)
    return moved


class Bell:
    """A FIFO that each supervisor writes its run's name to when the run starts and ends.

    Not a socket: its path may have any length, and `import socket` would cost the supervisors 8 ms.
    """

    def __init__(self, wake: Path, staging: Path) -> None:
        self._rung = asyncio.Event()
        self._text = b""
        self._path = wake / uuid.uuid4().hex
        unready = staging / self._path.name
        os.mkfifo(unready, 0o600)
        self._reader = os.open(unready, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(unready, os.O_WRONLY | os.O_NONBLOCK)  # or it would read an end of file for ever
        os.rename(unready, self._path)  # only now: a FIFO without a reader is taken for a dead controller's
        asyncio.get_running_loop().add_reader(self._reader, self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            self._text += os.read(self._reader, 65536)
        self._rung.set()

    async def rung(self, seconds: float) -> set[str]:
        """The runs that something became of; waits for one, but not longer than `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._rung.wait()
        self._rung.clear()
        *names, self._text = self._text.split(b"\n")
        return {name.decode(errors="replace") for name in names}

    def close(self) -> None:
        """Takes the FIFO away."""
        asyncio.get_running_loop().remove_reader(self._reader)
        self._path.unlink(missing_ok=True)
        os.close(self._reader)
        os.close(self._writer)
