"""The supervisor under its name in 0.1, which a controller of 0.1 uses if its files are replaced while it runs."""

from __future__ import annotations

from controller.backends.process.supervisor import main as main
