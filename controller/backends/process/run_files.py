"""The files of one run, as its supervisor writes them. It imports little, since every start waits for it."""

from __future__ import annotations

import errno
import os
import time

# The request file has one of three names. It leaves the first by a rename, which only one process can win.
INERT = "inert"  # may be started
STARTED = "started"  # a supervisor took it, and holds its lock while it lives
NEVER = "never"  # can no longer be started

RUNNING = "running"  # the command started, at this file's time
TIMEOUT = "timeout"  # its time ran out
KILL = "kill"  # somebody asked to end it
FILE_BYTES = ".file_bytes"  # in the request, before the command's own variables: the limit on the size of each file
BY_CONTROLLER = b"controller"  # content of that file if a controller asked
DRAFT = "exit.new"  # reserves disk space for the next file
EXIT = "exit"  # how it ended; written last, and whole
CONTROL = "control"  # a FIFO: a byte in it makes the supervisor look for such a file
OUTPUT = "output."  # followed by the segment's number
WORK = "work"  # the command's working directory
TEMPORARY = "tmp"  # the command's TMPDIR
MARKER = "_SANDBOX_RUN"  # environment variable of every process of the run; its value is the run uid

SEGMENT_MIN = 65536
CHUNK = 65536
RECORD_BYTES = 8192


class SegmentedOutput:
    """Keeps the end of a pipe's output in two files on disk, of which all but the last are full."""

    def __init__(self, pipe: int, limit: int) -> None:
        self.total = 0
        self._pipe = pipe
        self._size = max(limit, SEGMENT_MIN)
        self._number = -1
        self._file = -1
        self._room = 0

    def pump(self) -> bool:
        """Reads what is available; False at the end of the pipe."""
        chunk = os.read(self._pipe, CHUNK)
        self.total += len(chunk)
        rest = memoryview(chunk)
        try:
            while rest:
                if not self._room:
                    self._turn()
                written = os.write(self._file, rest[: self._room])
                self._room -= written
                rest = rest[written:]
        except OSError:
            pass  # a full disk loses output, but not the run; `total` shows that some is missing
        return bool(chunk)

    def drain(self) -> None:
        """Reads what is left in the pipe, and no more: a process may keep it open for ever."""
        try:
            for _ in range(32):
                if not self.pump():
                    break
        except BlockingIOError:
            pass

    def _turn(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        remove(f"{OUTPUT}{self._number - 1}")
        self._file = os.open(f"{OUTPUT}{self._number + 1}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._number += 1
        self._room = self._size


def wake(wake_directory: str, name: str) -> None:
    """Writes the run's name to each controller's FIFO. Best effort: controllers also poll."""
    try:
        for listener in os.listdir(wake_directory):
            call(os.path.join(wake_directory, listener), name)
    except OSError:
        pass


def call(listener: str, name: str) -> None:
    """Writes a run's name to one controller's FIFO; removes the FIFO if that controller is dead."""
    try:
        descriptor = os.open(listener, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no reader, though its controller opened it before it was moved here
            remove(listener)
        return
    try:
        os.write(descriptor, name.encode() + b"\n")
    except OSError:
        pass  # full: that controller polls
    finally:
        os.close(descriptor)


def write_record(record: list[str]) -> None:
    """Writes the record of the run's end atomically and durably, over a draft that reserved its disk space."""
    content = "\n".join([*record, ""]).encode()
    while True:
        try:
            descriptor = os.open(DRAFT, os.O_WRONLY)
            try:
                os.write(descriptor, content)
                os.ftruncate(descriptor, len(content))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(DRAFT, EXIT)
            sync_directory()
            return
        except (FileNotFoundError, PermissionError):
            return  # the run's directory was removed or closed by its own command
        except OSError:
            time.sleep(0.5)


def note(path: str, *, at: float | None = None, durable: bool = False) -> None:
    """Creates an empty file, for which even a full disk usually has room; `at`: its modification time."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        if at is not None:
            os.utime(path, (at, at))
        if durable:
            sync_directory()
    except OSError:
        return


def sync_directory() -> None:
    """Makes the file names in the run's directory durable."""
    directory = os.open(".", os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove(path: str) -> None:
    """Removes a file, if it is there."""
    try:
        os.unlink(path)
    except OSError:
        return
