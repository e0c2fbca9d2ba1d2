"""Finds processes of this host by the run uid in their environment, and kills them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress

from controller.backends.process import run_files

SWEEP_SECONDS = 1.0  # of one call


def kill_marked_processes(run_uids: Iterable[str]) -> bool:
    """Kills every process with one of these run uids in its environment; True once none is left.

    Only Linux shows the environments of other processes: elsewhere none is found.
    """
    marks = {f"{run_files.MARKER}={run_uid}".encode() for run_uid in run_uids}
    give_up = time.monotonic() + SWEEP_SECONDS
    blank: set[int] = set()
    others: set[int] = set()
    while unknown := _processes() - others:  # until no process is new: one may fork and end before it is inspected
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
                blank.add(pid)  # a kernel thread, a zombie, or a process during exec: look once more
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
        return b""  # gone, a zombie, or of another user
