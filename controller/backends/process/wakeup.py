"""How supervisors wake a controller."""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import suppress
from pathlib import Path


class WakeupFifo:
    """A FIFO that each supervisor writes its run's name to when the run starts and ends.

    Not a socket: its path may have any length, and `import socket` would cost the supervisors 8 ms.
    """

    def __init__(self, wake: Path, staging: Path) -> None:
        self._readable = asyncio.Event()
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
        self._readable.set()

    async def wait(self, seconds: float) -> set[str]:
        """The runs that something became of; waits for one, but not longer than `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._readable.wait()
        self._readable.clear()
        *names, self._text = self._text.split(b"\n")
        return {name.decode(errors="replace") for name in names}

    def close(self) -> None:
        """Takes the FIFO away."""
        asyncio.get_running_loop().remove_reader(self._reader)
        self._path.unlink(missing_ok=True)
        os.close(self._reader)
        os.close(self._writer)
