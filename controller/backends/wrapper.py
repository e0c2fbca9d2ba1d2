"""The wrapper: the shell text that is PID 1 of every sandbox."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def wrapper_text() -> str:
    """wrapper.sh for `/bin/sh -c`, without the lines that only its readers need."""
    text = files("controller.backends").joinpath("wrapper.sh").read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))
