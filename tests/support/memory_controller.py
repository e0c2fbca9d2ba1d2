"""A controller as `python -m controller run` has it, on a fake engine of its own.

python -m tests.support.memory_controller
"""

from __future__ import annotations

import asyncio

from controller import app, logs
from controller.settings import Settings
from tests.support.memory_backend import MemoryBackend


def run() -> None:
    """Runs it until it is told to stop."""
    settings = Settings.read()
    logs.set_up(settings.log_format)
    asyncio.run(app.serve(settings, MemoryBackend()))


if __name__ == "__main__":
    run()
