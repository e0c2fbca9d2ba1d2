"""Reads the end of a container's output from a log of any length, in bounded memory."""

from __future__ import annotations

from controller.backends.docker.container import LOG_FILE_MB, LOG_FILES
from controller.protocol.model import Output

PART_BYTES = 16384  # a longer line comes in frames of this size and a last shorter one
HEADER_BYTES = 8  # of a frame: its stream, three zeros, its length
RECORD_BYTES = 28  # overhead of a record in the engine's log, beside its line
FULL_LOG_BYTES = (LOG_FILE_MB * (LOG_FILES - 1) - 1) * 1_000_000  # a log that has dropped something holds more


class ContainerLogTail:
    """Consumes the engine's frames, and keeps the last `limit` bytes of their content."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unread = bytearray()
        self._tail = bytearray()
        self._size = 0
        self._stored = 0
        self._open = False  # the last record was not part of a longer line, but had no line end

    def feed(self, chunk: bytes) -> None:
        """Consumes the next bytes of the engine's answer, split anywhere."""
        self._unread += chunk
        at, end = 0, len(self._unread)
        while end - at >= HEADER_BYTES:
            begin = at + HEADER_BYTES
            size = int.from_bytes(self._unread[at + 4 : begin], "big")
            if begin + size > end:
                break
            self._take(self._unread[begin : begin + size])
            at = begin + size
        del self._unread[:at]
        if len(self._tail) > 2 * self._limit:
            self._cut()

    def _take(self, record: bytearray) -> None:
        """Adds one record, and before it the line end that Docker 20.10 loses after a line of several records."""
        if self._open:
            self._tail += b"\n"
            self._size += 1
        self._open = len(record) < PART_BYTES and not record.endswith(b"\n")
        self._tail += record
        self._size += len(record)
        self._stored += len(record) + RECORD_BYTES

    def output(self) -> Output:
        """The output that was kept."""
        self._cut()
        return Output(bytes(self._tail), self._size > self._limit or self._stored >= FULL_LOG_BYTES)

    def _cut(self) -> None:
        del self._tail[: max(len(self._tail) - self._limit, 0)]
