"""The inside of every pod and container: its user, its directories, and the scripts of PID 1 and its keeper."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

USER = 1000  # and its group
WORK_DIR = "/work"
STATE_DIR = "/.sandbox"  # outlives a restart of the container: an engine may start one again, whatever it was asked
STATE_FILE = f"{STATE_DIR}/state"


@cache
def wrapper_text() -> str:
    """wrapper.sh for `/bin/sh -c`, without the lines that only its readers need."""
    return _script("wrapper.sh")


@cache
def keeper_text() -> str:
    """keeper.sh, likewise: an argument of the wrapper's."""
    return _script("keeper.sh")


def _script(name: str) -> str:
    text = files(__package__).joinpath(name).read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if line and not line.lstrip().startswith("#"))
