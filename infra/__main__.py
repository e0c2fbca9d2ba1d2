"""What Pulumi runs."""

from __future__ import annotations

import os
import signal

from infra.program import main


def _end(signal_number: int, frame: object) -> None:
    """Where a resource failed, the engine says why and interrupts the program: a trace of its waits would hide that."""
    os._exit(1)


signal.signal(signal.SIGINT, _end)
main()
