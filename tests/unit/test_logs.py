"""A log line is one line, says what it is about, and never holds a value of an env."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from uuid import UUID

import pytest

from controller import logs
from controller.protocol.model import Key, Launch
from tests.support.memory_backend import Fault, MemoryBackend

KEY = Key(UUID(int=5), 2)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root, pool = logging.getLogger(), logging.getLogger("psycopg.pool")
    handlers, level, pool_level = root.handlers[:], root.level, pool.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    pool.setLevel(pool_level)


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("controller.reconcile.worker", logging.WARNING, __file__, 1, message, (), None)
    made.__dict__.update(extra)
    return made


def test_json_is_one_object_a_line_with_sandbox_and_attempt() -> None:
    line = logs.JsonFormatter().format(record("two\nlines “€” \x1b[31m", **logs.about(KEY)))
    assert "\n" not in line
    assert line.isascii()
    read = json.loads(line)
    assert read.pop("at").endswith("+00:00")
    assert read == {
        "level": "warning",
        "logger": "controller.reconcile.worker",
        "message": "two\nlines “€” \x1b[31m",
        "sandbox": str(KEY.sandbox_id),
        "attempt": 2,
    }


def test_json_without_a_sandbox_has_no_empty_fields() -> None:
    assert set(json.loads(logs.JsonFormatter().format(record("ready")))) == {"at", "level", "logger", "message"}


def test_console_tells_the_same_to_people() -> None:
    line = logs.ConsoleFormatter().format(record("released", **logs.about(KEY)))
    assert line.endswith(f" warning released sandbox={KEY.sandbox_id} attempt=2")


def test_what_varies_is_a_field_of_its_own() -> None:
    made = record("action failed, retrying", **logs.about(KEY, error=ValueError("no room, yet"), tries=3))
    read = json.loads(logs.JsonFormatter().format(made))
    assert (read["message"], read["error"], read["tries"]) == ("action failed, retrying", "no room, yet", 3)
    line = logs.ConsoleFormatter().format(made)
    assert f' action failed, retrying error="no room, yet" tries=3 sandbox={KEY.sandbox_id} attempt=2' in line


def test_a_field_replaces_no_part_of_the_line() -> None:
    read = json.loads(logs.JsonFormatter().format(record("ready", **logs.about(message="forged", level="debug"))))
    assert (read["message"], read["level"]) == ("ready", "warning")


def test_a_line_for_people_steers_no_terminal() -> None:
    text = "the engine says: \x1b]0;t\x07\r\x9b2J\u202e\nforged line"
    for made in (record(text), record("failed", **logs.about(error=text))):
        line = logs.ConsoleFormatter().format(made)
        assert line.isprintable()
        assert r"\x9b2J\u202e" in line
        assert r"\nforged line" in line


def test_a_trace_for_people_steers_no_terminal() -> None:
    try:
        raise ValueError("broken \x1b[2J here")
    except ValueError:
        line = logs.ConsoleFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert line.replace("\n", "").isprintable()


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.ConsoleFormatter()])
def test_an_error_brings_its_trace(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("broken here")
    except ValueError:
        made = record("failed", exc_info=sys.exc_info())
    assert "ValueError: broken here" in formatter.format(made)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_log_goes_to_standard_error(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(log_format)
    logging.getLogger("controller").info("hello", extra=logs.about(KEY))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "hello" in err
    assert str(KEY.sandbox_id) in err


def test_no_log_line_and_no_error_holds_an_env_value(caplog: pytest.LogCaptureFixture) -> None:
    launch = Launch(KEY, "true", 60, env={"TOKEN": "s3cr3t"})
    caplog.set_level(logging.DEBUG)

    async def refused() -> None:
        backend = MemoryBackend(fault=lambda verb, key: Fault.REFUSED)
        try:
            await backend.create(launch, look=False)
        except Exception:
            logging.getLogger("controller").exception("could not create", extra=logs.about(launch.key))

    asyncio.run(refused())
    assert caplog.records
    assert not [line for line in caplog.records if "s3cr3t" in logs.JsonFormatter().format(line) + repr(line.__dict__)]
