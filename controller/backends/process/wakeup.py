"""The FIFO by which supervisors wake a controller."""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import suppress
from pathlib import Path


class WakeupFifo:
    """A FIFO to which each supervisor writes its run's name when the run starts and ends.

    It is not a socket: a FIFO's path may have any length, and `import socket` would cost each supervisor 8 ms.
    """

    def __init__(self, wake: Path, staging: Path) -> None:
        self._readable = asyncio.Event()
        self._text = b""
        self._path = wake / uuid.uuid4().hex
        unready = staging / self._path.name
        os.mkfifo(unready, 0o600)
        self._reader = os.open(unready, os.O_RDONLY | os.O_NONBLOCK)
        self._writer = os.open(
            unready, os.O_WRONLY | os.O_NONBLOCK
        )  # otherwise the reader would always see an end of file
        os.rename(
            unready, self._path
        )  # only now: supervisors remove a FIFO without a reader, as that of a dead controller
        asyncio.get_running_loop().add_reader(self._reader, self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            self._text += os.read(self._reader, 65536)
        self._readable.set()

    async def wait(self, seconds: float) -> set[str]:
        """Waits up to `seconds` for a run's name; returns the names that came."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._readable.wait()
        self._readable.clear()
        *names, self._text = self._text.split(b"\n")
        return {name.decode(errors="replace") for name in names}

    def close(self) -> None:
        """Removes the FIFO."""
        asyncio.get_running_loop().remove_reader(self._reader)
        self._path.unlink(missing_ok=True)
        os.close(self._reader)
        os.close(self._writer)
