"""The entry point that Pulumi runs."""

from __future__ import annotations

import os
import signal

from infra.program import main


def _end(signal_number: int, frame: object) -> None:
    """Exits without a stack trace: if a resource fails, the engine reports why and interrupts the program."""
    os._exit(1)


signal.signal(signal.SIGINT, _end)
main()
