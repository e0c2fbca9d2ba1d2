"""The supervisor by its name in 0.1: a controller whose files were replaced under it starts its runs by that."""

from __future__ import annotations

from controller.backends.process.supervisor import main as main
