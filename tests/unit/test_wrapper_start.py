"""Whether PID 1 starts the command: its first lines decide, from the state file alone.

The later lines are not run here: they kill every process that they can reach.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from controller.backends.guest.layout import wrapper_text

HEAD, DECIDED, _ = wrapper_text().partition("echo started")


def start(state: Path) -> tuple[int, str]:
    """The exit code and output of the wrapper's first lines, which say "starts" if they let the command start."""
    assert DECIDED
    assert "kill" not in HEAD
    words = ["/bin/sh", "-c", f"{HEAD}\necho starts", "sandbox", str(state), "60", "16", "24", ":", "exit 0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("before", "answer"),
    [("", (0, "starts\n")), ("started\n", (125, "")), ("started\nstarted_at 7\nexit 3\n", (3, ""))],
    ids=["never started", "started before", "ended before"],
)
def test_a_start_needs_an_empty_state_file(tmp_path: Path, before: str, answer: tuple[int, str]) -> None:
    state = tmp_path / "state"
    state.write_text(before)
    assert start(state) == answer
    assert state.read_text() == (f"{before}again\n" if before else "")


def test_without_a_state_file_nothing_starts(tmp_path: Path) -> None:
    assert start(tmp_path / "state") == (125, "")
    assert not (tmp_path / "state").exists()
