"""`explain` says on one screen how a sandbox stands and exactly what it waits for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unicodedata import east_asian_width
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.requester.explain import screen, span, waits_for

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
ENGINE = "process:2e84f6e4-f1d8-45e7-b407-d4a6c8cbfaab"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202etxt.exe\u2028\ttab\nline"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def row(**columns: Any) -> dict[str, Any]:
    """A row that waits in the queue, but for these columns."""
    nothing = (
        "image idempotency_key cancel_requested_at exit_code reason message waiting claimed_at launched_at started_at "
        "finished_at cleaned_at claimed_by lease_until engine run_uid retry_at tenant_max_running"
    )
    asked = {"command": "true", "env": {}, "cpu_millis": 1000, "memory_mib": 1024, "disk_mib": 1024}
    asked |= {"timeout_seconds": 600, "network": "none", "tenant": "default", "priority": 0, "max_attempts": 1}
    stands = {"id": UUID(int=7), "created_at": ago(60), "state": "queued", "attempt": 1, "runs": 0, "now": NOW}
    seen = {"ahead": 0, "busy": 0, "tenant_busy": 0, "controllers": 1}
    return dict.fromkeys(nothing.split()) | asked | stands | seen | columns


def launching(**columns: Any) -> dict[str, Any]:
    held = {"state": "launching", "engine": ENGINE, "claimed_by": "host/1-abc", "lease_until": ago(-30)}
    return row(**held | columns)


def running(**columns: Any) -> dict[str, Any]:
    return row(**{"state": "running", "engine": ENGINE, "run_uid": "u", "started_at": ago(10)} | columns)


def attempt(**columns: Any) -> dict[str, Any]:
    ended = {"attempt": 1, "state": "failed", "reason": "NonZeroExit", "exit_code": 3, "message": "m", "bytes": 1048576}
    times = {"started_at": ago(9), "ended_at": ago(7.5), "output_truncated": True, "node": None, "image_digest": None}
    return ended | times | columns


def event(seconds_ago: float, step: str, detail: str | None = None, attempt: int = 1) -> dict[str, Any]:
    return {"at": ago(seconds_ago), "attempt": attempt, "step": step, "detail": detail}


@pytest.mark.parametrize(
    ("stands", "told"),
    [
        pytest.param(row(ahead=3, tenant="ci"), "3 ahead of it in the queue of tenant ci", id="position"),
        pytest.param(row(state="running"), "this state was written by hand", id="running by hand"),
        pytest.param(row(state="launching"), "this state was written by hand", id="launching by hand"),
        pytest.param(row(ahead=1000), "1000 or more ahead of it", id="a long queue"),
        pytest.param(row(tenant_max_running=5, tenant_busy=5, busy=9), "its limit: 5, reached", id="tenant's limit"),
        pytest.param(row(controllers=0), "none is connected to this database; start one with", id="no controller"),
        pytest.param(row(attempt=2, retry_at=ago(-1.5)), "attempt 2, due in 1.500 s", id="retry"),
        pytest.param(row(attempt=2, retry_at=ago(4)), "attempt 2, due in 0.000 s", id="retry overdue"),
        pytest.param(row(cancel_requested_at=ago(2)), "its end: a cancel was requested 2.000 s ago", id="cancel"),
        pytest.param(launching(), "its run to be created, by host/1-abc, whose lease has 30.0 s left", id="claimed"),
        pytest.param(launching(run_uid="u"), "its command to start, by host/1-abc", id="bound"),
        pytest.param(launching(waiting="ImagePullBackOff"), "because: ImagePullBackOff", id="waiting"),
        pytest.param(launching(lease_until=ago(20)), "but the lease ran out 20.0 s ago", id="lease"),
        pytest.param(
            launching(lease_until=ago(20)), f"none seems to be running for engine {ENGINE}", id="dead controller"
        ),
        pytest.param(running(), "it has run for 10.0 s and may for 9 min 50 s more", id="running"),
        pytest.param(
            running(started_at=ago(700)), f"none seems to be running for engine {ENGINE}", id="past its timeout"
        ),
        pytest.param(row(state="failed"), "nothing but the removal of its run", id="ended"),
        pytest.param(row(state="failed", cleaned_at=NOW), "nothing: it has ended", id="cleaned"),
    ],
)
def test_it_says_what_is_waited_for(stands: dict[str, Any], told: str) -> None:
    assert told in "\n".join(waits_for(stands))
    assert told in " ".join("\n".join(screen(stands, [], [])).split())


def test_a_cancel_in_the_queue_is_all_that_is_waited_for() -> None:
    assert len(waits_for(row(cancel_requested_at=ago(2)))) == 1


def test_an_end_is_told_with_reason_exit_code_and_message() -> None:
    lines = screen(row(state="failed", reason="NonZeroExit", exit_code=3, message="it exited with 3"), [], [attempt()])
    assert "  state     failed, NonZeroExit, exit code 3" in lines
    assert "  message   it exited with 3" in lines
    assert "  1  failed NonZeroExit, exit code 3, 03:03:56 ran 1.500 s, 1,048,576 bytes of output, truncated" in lines


def test_an_attempt_without_exit_code_times_or_output_says_so() -> None:
    lost = attempt(state="lost", reason="Lost", exit_code=None, started_at=None, bytes=None, output_truncated=False)
    assert screen(row(), [], [lost])[-1] == "  1  lost Lost, no exit code, times unknown, no output"
    gone = attempt(bytes=None, output_truncated=True)
    assert screen(row(), [], [gone])[-1].endswith(", output lost")


def test_the_timeline_tells_the_time_between_steps() -> None:
    events = [event(59.5, "claimed", "host/1"), event(58, "queued again", attempt=1), event(40, "claimed", attempt=2)]
    lines = screen(row(cancel_requested_at=ago(30)), events, [])
    start = lines.index("timeline (UTC)") + 1
    assert [" ".join(line.split()) for line in lines[start : start + 5]] == [
        "03:03:05.678 +0.000 s inserted",
        "03:03:06.178 +0.500 s claimed host/1",
        "03:03:07.678 +1.500 s queued again",
        "03:03:25.678 +18.0 s claimed (2)",
        "03:03:35.678 +10.0 s cancel requested",
    ]


def test_env_is_told_by_name_and_never_by_value() -> None:
    text = "\n".join(screen(row(env={"TOKEN": "s3cret"}), [], []))
    assert "TOKEN" in text
    assert "s3cret" not in text


@pytest.mark.parametrize("column", ["command", "message", "waiting", "tenant", "engine"])
def test_nothing_in_a_row_can_steer_the_terminal(column: str) -> None:
    lines = screen(launching(**{column: HOSTILE}), [event(1, "waiting", HOSTILE)], [])
    assert all(line.isprintable() for line in lines)
    assert r"\x1b]0;owned\x07" in "".join(lines)


@given(st.text(max_size=400), st.sampled_from(["ascii", "latin-1", "koi8-r"]))
def test_it_is_one_screen_in_the_characters_of_any_terminal(text: str, encoding: str) -> None:
    lines = screen(
        launching(command=text, message=text, image="é€" * 90), [event(9, "waiting", text)] * 30, [], encoding
    )
    assert len(lines) <= 40
    assert max(len(line.encode(encoding)) for line in lines) <= 100


def test_what_a_terminal_cannot_show_is_written_out() -> None:
    text = "\n".join(screen(row(command="echo é €", image="i" * 120), [event(9, "s")] * 30, [], "ascii"))
    assert r"echo \xe9 \u20ac" in text
    assert "iii...\n" in text
    assert "... 21 more ..." in text


@given(st.text(max_size=4000), st.integers(0, 60), st.integers(0, 100))
def test_it_is_one_screen_whatever_is_in_the_row(text: str, steps: int, tries: int) -> None:
    long = launching(command=text, message=text, waiting=text, env={text: ""}, image=text, tenant=text, reason="Lost")
    long |= {"lease_until": ago(1), "engine": text, "controllers": 0, "cancel_requested_at": ago(2)}
    lines = screen(long, [event(50, "waiting", text)] * steps, [attempt()] * tries)
    assert len(lines) <= 40
    assert all(sum(2 if east_asian_width(c) in "WF" else 1 for c in line) <= 100 for line in lines)


def test_of_many_steps_the_first_and_the_last_are_told() -> None:
    text = "\n".join(screen(row(), [event(50 - n, f"step{n}") for n in range(30)], []))
    assert "step0" in text
    assert "step29" in text
    assert "… 21 more …" in text


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.0123, "0.012 s"),
        (9.9994, "9.999 s"),
        (42, "42.0 s"),
        (-200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_lengths_of_time_are_told_for_people(seconds: float, told: str) -> None:
    assert span(timedelta(seconds=seconds)) == told
