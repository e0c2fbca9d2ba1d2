"""The process's standard streams: messages for people on standard error, results on standard output.

Characters that a stream cannot show are escaped, and a stream without a reader is no error.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from io import TextIOWrapper
from typing import Literal, TextIO

from controller.errors import SandboxError
from controller.protocol.text import encodable, harmless, visible


def prepare() -> None:
    """Makes all three streams usable, even if they were closed or have another encoding."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # the next file or connection would get a closed stream's number
        null = os.dup(null)
    os.close(null)
    sys.stdin = sys.stdin or _open(0, "r")
    sys.stdout = sys.stdout or _open(1, "w")
    sys.stderr = sys.stderr or _open(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str) -> None:
    """Writes these lines to standard error."""
    text = "".join(f"{encodable(visible(line), sys.stderr.encoding)}\n" for line in lines)
    try:
        sys.stderr.write(text)  # in one call, so that lines of other threads stay whole
        sys.stderr.flush()
    except OSError:
        _discard_rest(sys.stderr)


def show(*lines: str) -> None:
    """Writes these lines to standard output. Raises SandboxError if they cannot be written."""
    _write("".join(f"{encodable(line, sys.stdout.encoding)}\n" for line in lines))


def write_output(output: str, *, raw: bool) -> None:
    """Writes a command's output to standard output, byte for byte; on a terminal, control characters are escaped unless
    `raw`, and the output ends with a line end. Raises SandboxError if it cannot be written."""
    terminal = sys.stdout.isatty()
    if terminal and not raw:
        _write(encodable(harmless(output), sys.stdout.encoding))
    else:
        _write(output.encode())
    if terminal and output and not output.endswith("\n"):
        say("")


def finish() -> None:
    """Flushes both streams, so that nothing can fail at the interpreter's exit, where no error is reported."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard_rest(stream)


def _write(what: str | bytes) -> None:
    try:
        if isinstance(what, str):
            sys.stdout.write(what)
        else:
            sys.stdout.buffer.write(what)
        sys.stdout.flush()
    except OSError as error:
        unread = error.errno == errno.EPIPE or (error.errno == errno.EIO and _is_device(sys.stdout))
        _discard_rest(sys.stdout)
        if unread:  # the reader has closed it, or the terminal is gone
            return
        raise SandboxError(f"standard output cannot be written to: {error.strerror}") from error


def _is_device(stream: TextIO) -> bool:
    return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def _discard_rest(stream: TextIO) -> None:
    """Redirects the stream to nowhere: flushing its rest at the exit would fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _open(descriptor: int, mode: Literal["r", "w"]) -> TextIO:
    return open(descriptor, mode, encoding="utf-8", closefd=False)
