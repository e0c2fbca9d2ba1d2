"""The process's own streams: what is said to people on standard error, and what is handed on on standard output.

Whatever a stream cannot show is written out as escapes, and one that nobody reads any more stops nothing.
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
    """Makes all three streams usable, however they were closed or encoded."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # a closed one's number would go to the next file or connection that is opened
        null = os.dup(null)
    os.close(null)
    sys.stdin = sys.stdin or _on(0, "r")
    sys.stdout = sys.stdout or _on(1, "w")
    sys.stderr = sys.stderr or _on(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str) -> None:
    """Tells people these lines."""
    text = "".join(f"{encodable(visible(line), sys.stderr.encoding)}\n" for line in lines)
    try:
        sys.stderr.write(text)  # at once, so that another thread's stay whole too
        sys.stderr.flush()
    except OSError:
        _let_go(sys.stderr)


def show(*lines: str) -> None:
    """Puts these lines out. Raises SandboxError where there is no room for them."""
    _put_out("".join(f"{encodable(line, sys.stdout.encoding)}\n" for line in lines))


def hand_on(output: str, *, raw: bool) -> None:
    """Puts a command's output out: byte for byte, but on a terminal without what could steer it, unless `raw`.

    A terminal's next line begins on one of its own. Raises SandboxError where there is no room for it.
    """
    terminal = sys.stdout.isatty()
    if terminal and not raw:
        _put_out(encodable(harmless(output), sys.stdout.encoding))
    else:
        _put_out(output.encode())
    if terminal and output and not output.endswith("\n"):
        say("")


def finish() -> None:
    """Leaves nothing to be flushed that could fail when nobody is told any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _let_go(stream)


def _put_out(what: str | bytes) -> None:
    try:
        if isinstance(what, str):
            sys.stdout.write(what)
        else:
            sys.stdout.buffer.write(what)
        sys.stdout.flush()
    except OSError as error:
        nobody = error.errno == errno.EPIPE or (error.errno == errno.EIO and _is_device(sys.stdout))
        _let_go(sys.stdout)
        if nobody:  # whoever read it has had enough, or the terminal is gone
            return
        raise SandboxError(f"standard output cannot be written to: {error.strerror}") from error


def _is_device(stream: TextIO) -> bool:
    return stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)


def _let_go(stream: TextIO) -> None:
    """Lets the rest of it go nowhere: what is still to be flushed would fail at the end once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _on(descriptor: int, mode: Literal["r", "w"]) -> TextIO:
    return open(descriptor, mode, encoding="utf-8", closefd=False)
