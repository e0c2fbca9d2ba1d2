"""Whether a container is ready, from what the engine shows of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controller.protocol.text import visible
from infra.waiting.readiness import Unready

EXITS = 2  # of a container that is restarted each time: more of them bring nothing new
STARTING_SECONDS = 10.0  # before a start is reported
MOST_CHARACTERS = 600  # of what a container wrote last


@dataclass(frozen=True)
class SeenContainer:
    """A container as the engine shows it, the last lines of its log, and its restarts before the wait began."""

    shown: dict[str, Any]
    lines: Sequence[str]
    restarts_before: int = 0


def healthy(seen: SeenContainer) -> Unready | None:
    """The verdict on a container that is to run and pass its check; None if it does."""
    state = seen.shown["State"]
    exits = seen.shown["RestartCount"] - seen.restarts_before
    ended = state["Status"] in ("exited", "dead")
    if exits >= EXITS or ended:
        words = f"{_exited(state)}, again and again" if exits else f"{_exited(state)}, and is not started again"
        return Unready("exits", f"{words}: {last_words(seen.lines)}", patience=0)
    if state["Status"] == "restarting" or exits > 0:
        return Unready("exits", f"it ended, and is started again: {last_words(seen.lines)}")
    if state["Status"] == "created":
        return _not_started(state)
    health = state.get("Health") or {"Status": "without a health check", "Log": []}
    if state["Running"] and health["Status"] == "healthy":
        return None
    checks = [str(one["Output"]).strip() for one in health.get("Log") or () if one["ExitCode"]]
    check = (
        f"its health check fails ({last_words(checks[-1].splitlines())})"
        if checks
        else "has not passed its health check yet"
    )
    return Unready("unhealthy", f"it runs, and {check}: {last_words(seen.lines)}", quiet=STARTING_SECONDS)


def ended_well(seen: SeenContainer) -> Unready | None:
    """The verdict on a container that is to end by itself; None if it has, without an error."""
    state = seen.shown["State"]
    if state["Status"] == "created":
        return _not_started(state)
    if state["Status"] == "running":
        return Unready("runs", f"it runs: {last_words(seen.lines)}", quiet=STARTING_SECONDS)
    if state["ExitCode"] == 0 and not state["OOMKilled"]:
        return None
    return Unready("failed", f"{_exited(state)}: {last_words(seen.lines)}", patience=0)


def last_words(lines: Sequence[str]) -> str:
    """The end of a log on one line."""
    said = " / ".join(dict.fromkeys(visible((event_words(line) or line).strip()) for line in lines if line.strip()))
    return ("…" + said[-MOST_CHARACTERS:] if len(said) > MOST_CHARACTERS else said) or "its log is empty"


def event_words(line: str) -> str | None:
    """The message of a line that a controller wrote as JSON, with its error; None of another line."""
    try:
        read = json.loads(line)
    except ValueError:
        return None
    if not isinstance(read, dict) or "message" not in read:
        return None
    return f"{read['message']}: {read['error']}" if "error" in read else str(read["message"])


def _not_started(state: dict[str, Any]) -> Unready:
    why = visible(state["Error"]) or "the engine does not say why"
    return Unready("not started", f"it was not started: {why}", patience=STARTING_SECONDS)


def _exited(state: dict[str, Any]) -> str:
    why = state["Error"] or ("out of memory" if state["OOMKilled"] else f"exit code {state['ExitCode']}")
    return f"it ended ({visible(why)})"
