"""`submit` turns words into a request, tells what is new, and ends as the sandbox did."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from typing import Any, cast
from uuid import UUID

import pytest

from controller.protocol.model import State
from controller.requester.client import Client, Progress
from controller.requester.interrupts import Interrupts
from controller.requester.submit import NUMBERS, add_options, exit_code, follow, request

ID = UUID(int=7)


def asked(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return request(parser.parse_args(words))


def stands(state: State, *, exit_code: int | None = None, waiting: str | None = None, **more: Any) -> Progress:
    known = {"attempt": 1, "reason": None, "message": None, "resting": False, "seconds": 1.0, "controllers": None}
    return Progress(id=ID, state=state, exit_code=exit_code, waiting=waiting, **known | more)


class Told:
    """A client that tells of these looks."""

    def __init__(self, *looks: Progress) -> None:
        self.looks = looks

    def follow(self, _: UUID) -> Iterator[Progress]:
        yield from self.looks


class Undisturbed:
    """No signal has come."""

    cancelled = False


def lines(capsys: pytest.CaptureFixture[str], *looks: Progress) -> list[str]:
    """What is said on stderr while these looks are told; stdout stays empty."""
    assert follow(cast(Client, Told(*looks)), ID, cast(Interrupts, Undisturbed())) is looks[-1]
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()


def test_only_what_is_named_is_asked_for() -> None:
    assert asked("true") == {"command": "true"}


def test_every_option_is_a_column() -> None:
    numbers = ["--timeout", "1", "--cpu", "2", "--memory", "3", "--disk", "4", "--priority", "-5", "--attempts", "6"]
    words = ["--image", "i", "--network", "egress", "--tenant", "t", "--env", "A=", "--env", "B=x=y z"]
    assert asked(*numbers, *words, "--", "true") == {
        "timeout_seconds": 1, "cpu_millis": 2, "memory_mib": 3, "disk_mib": 4, "priority": -5, "max_attempts": 6,
        "image": "i", "network": "egress", "tenant": "t", "env": {"A": "", "B": "x=y z"}, "command": "true",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["echo $HOME; exit 3"], "echo $HOME; exit 3"),
        (["echo", "$HOME", "a b", "it's"], """echo '$HOME' 'a b' 'it'"'"'s'"""),
        (["sh", "-c", "exit 3"], "sh -c 'exit 3'"),
        (["git", "log", "--", "a"], "git log -- a"),
    ],
)
def test_one_word_is_a_shell_line_and_several_are_quoted(words: list[str], command: str) -> None:
    assert asked("--", *words) == {"command": command}


def test_a_number_too_large_for_postgres_still_meets_its_columns_rule() -> None:
    for digits in (40, 5000):
        assert asked("--cpu", "9" * digits, "true")["cpu_millis"] == 2**63 - 1
        assert asked("--cpu", "-" + "9" * digits, "true")["cpu_millis"] == -(2**63 - 1)
        assert asked("--cpu", "0" * digits + "70", "true")["cpu_millis"] == 70


NO_NUMBERS = ["much", "nan", "inf", "-inf", "1e400", "1e3", "1.5", "", " 1 x", "1_000", "\u0663", "0x10"]


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize("option", NUMBERS)
def test_what_is_no_whole_number_is_refused_in_a_sentence(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        asked(f"{option}={text}", "true")
    assert ended.value.code == 2
    assert f"argument {option}: {text!r} is not a whole number" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("words", [["--env", "A", "true"], ["--network", "all", "true"], []])
def test_words_that_make_no_sense_are_refused_with_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        asked(*words)
    assert ended.value.code == 2
    assert "usage: python -m controller submit [options] -- COMMAND ..." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (stands(State.SUCCEEDED, exit_code=0), 0),
        (stands(State.FAILED, exit_code=3), 3),
        (stands(State.FAILED, exit_code=137), 137),
        (stands(State.FAILED), 125),
        (stands(State.LOST), 125),
        (stands(State.TIMED_OUT), 124),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_as_the_sandbox_did(end: Progress, code: int, number: int) -> None:
    assert exit_code(end, number) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("own_code", [None, 137])
def test_a_cancelled_one_ends_as_by_the_signal_that_cancelled_it(number: int, code: int, own_code: int | None) -> None:
    assert exit_code(stands(State.CANCELLED, exit_code=own_code), number) == code


def test_each_state_is_told_once_with_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    queued, launching = stands(State.QUEUED), stands(State.LAUNCHING)
    pulling = stands(State.LAUNCHING, waiting="the image is being pulled\x1b[2J")
    again = stands(State.QUEUED, attempt=2, waiting="attempt 1 ended: NonZeroExit; the next is due", resting=True)
    said = lines(capsys, queued, queued, launching, pulling, pulling, again, stands(State.SUCCEEDED, exit_code=0))
    assert said == [
        f"    1.0 s  queued     {ID}",
        "    1.0 s  launching",
        r"    1.0 s  launching  the image is being pulled\x1b[2J",
        "    1.0 s  queued     attempt 2: attempt 1 ended: NonZeroExit; the next is due",
    ]


@pytest.mark.parametrize(
    ("controllers", "hint"),
    [(0, "no controller is connected to this database"), (2, f"python -m controller explain {ID}")],
)
def test_a_long_wait_in_the_queue_is_explained_once(
    controllers: int, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    long = stands(State.QUEUED, controllers=controllers)
    said = lines(capsys, stands(State.QUEUED), long, long, stands(State.SUCCEEDED))
    assert [hint in line for line in said] == [False, True]


def test_a_retry_that_is_not_due_is_no_reason_for_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    said = lines(capsys, stands(State.QUEUED, resting=True, controllers=0), stands(State.SUCCEEDED))
    assert len(said) == 1
