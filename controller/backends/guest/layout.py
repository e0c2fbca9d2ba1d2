"""The inside of every pod and container: its user, its directories, and the command line of PID 1."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from controller.backends.guest.evidence import is_number
from controller.protocol.model import Launch

USER = 1000  # and its group
WORK_DIR = "/work"
# A volume of its own. It outlives a restart of the container, which an engine may do whatever its restart policy says,
# and of the run only the file in it can be written.
STATE_DIR = "/.sandbox"
STATE_FILE = f"{STATE_DIR}/state"
TIMEOUT_WORD = 5  # position of the timeout in `entrypoint`


def entrypoint(launch: Launch, *, keeper_memory_mib: int | None) -> list[str]:
    """The command line of PID 1; the command itself follows as the next word.

    `keeper_memory_mib`: the limit that the keeper enforces, None if the engine alone enforces memory and disk.
    """
    memory = "" if keeper_memory_mib is None else str(keeper_memory_mib)
    limits = [str(launch.timeout_seconds), str(launch.disk_mib), memory]
    return ["/bin/sh", "-c", wrapper_text(), "sandbox", STATE_FILE, *limits, keeper_text()]


def timeout_of(command: Sequence[str]) -> int:
    """The timeout in seconds of that command line of PID 1; 0 if there is none in it."""
    word = command[TIMEOUT_WORD] if len(command) > TIMEOUT_WORD else ""
    return int(word) if is_number(word) else 0


def environment(launch: Launch) -> dict[str, str]:
    """The environment of PID 1 beside what the image sets."""
    return {"HOME": WORK_DIR, **launch.env}


@cache
def wrapper_text() -> str:
    """wrapper.sh for `/bin/sh -c`, without the lines that only its readers need."""
    return _script("wrapper.sh")


@cache
def keeper_text() -> str:
    """keeper.sh, which the wrapper gets as an argument, likewise."""
    return _script("keeper.sh")


def _script(name: str) -> str:
    text = files(__package__).joinpath(name).read_text("utf-8")
    return "\n".join(line for line in text.splitlines() if line and not line.lstrip().startswith("#"))
