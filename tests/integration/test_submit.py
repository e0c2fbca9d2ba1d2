"""`submit` and `explain` as a person runs them, against a real queue and a real controller."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from controller.db.migrate import migrate
from controller.requester.client import Client, RequestRefused
from tests.support.command_line import run_here
from tests.support.forked import Forked
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy

DEADLINE = 30.0  # seconds that a condition may take to come true
Database = psycopg.Connection[DictRow]


def environment(url: str, **settings: object) -> dict[str, str]:
    return os.environ | {"DATABASE_URL": url} | {name: str(value) for name, value in settings.items()}


def heed_hangups() -> None:
    """A new process's: where the tests run under nohup, it would not."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(url: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        env=environment(url),
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=heed_hangups,
    )


def run(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    process = start(url, *words)
    try:
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert "Traceback" not in err
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def until(what: str, true: Callable[[], Any]) -> Any:
    give_up = time.monotonic() + DEADLINE
    while not (found := true()):
        assert time.monotonic() < give_up, f"never: {what}"
        time.sleep(0.02)
    return found


@contextmanager
def rows(url: str) -> Iterator[Database]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


@pytest.fixture
def sandboxes(database: str) -> Iterator[Database]:
    with rows(database) as connection:
        yield connection


def the_row(sandboxes: Database, condition: LiteralString = "true") -> DictRow:
    """The one row, once it is there and so."""
    query = "select * from sandboxes where " + condition
    found: list[DictRow] = until(f"a row that is {condition}", lambda: sandboxes.execute(query).fetchall())
    assert len(found) == 1
    return found[0]


def end(sandboxes: Database, id: UUID, reason: str) -> None:
    """Ends a row as a controller would, but tells nobody."""
    sandboxes.execute("update sandboxes set state = 'launching', claimed_at = now() where id = %s", [id])
    sandboxes.execute(
        "update sandboxes set state = 'failed', reason = %s, message = 'so it is', finished_at = now() where id = %s",
        [reason, id],
    )


@pytest.fixture
def controller(database: str, sandboxes: Database, tmp_path: Path) -> Iterator[str]:
    """The URL of a database whose sandboxes run, as processes of this host."""
    settings = {"SANDBOX_BACKEND": "process", "SANDBOX_WORK_DIR": tmp_path / "work", "HTTP_PORT": 0}
    ours = environment(database, SANDBOX_OUTPUT_BYTES=1024, **settings)
    process = Forked(run_here, "run", environment=ours, log=tmp_path / "log")
    listening = (
        "select from pg_stat_activity where datname = current_database() and application_name = 'sandbox-listener'"
    )
    try:
        until("a controller that listens", lambda: process.poll() is not None or sandboxes.execute(listening).rowcount)
        yield database
    finally:
        sandboxes.execute("update sandboxes set cancel_requested_at = now() where finished_at is null")
        until(
            "the end of all",
            lambda: not sandboxes.execute("select from sandboxes where cleaned_at is null").rowcount,
        )
        process.terminate()
        try:
            process.wait(10)
        except TimeoutError:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("words", "code", "output", "told"),
    [
        (["--", "echo out; printf err >&2"], 0, "out\nerr", "succeeded  Completed"),
        (["--", "echo oh; exit 3"], 3, "oh\n", "failed     NonZeroExit: the command exited with 3"),
        (["--", "kill -KILL $$"], 137, "", "(signal 9)"),
        (["--timeout", "1", "echo begun; sleep 60"], 124, "begun\n", "timed_out  DeadlineExceeded"),
        (["--env", "A=$(id) `id` \"'", "--", 'printf %s "$A"'], 0, "$(id) `id` \"'", "succeeded"),
        (["printf", "%s|", "a b", "$HOME"], 0, "a b|$HOME|", "succeeded"),
        (["--", "yes | head -c 5000"], 0, "y\n" * 512, "these are its last 1,024 bytes"),
    ],
)
def test_it_prints_the_output_alone_and_ends_as_the_command(
    controller: str, words: list[str], code: int, output: str, told: str
) -> None:
    done = run(controller, "submit", *words)
    assert (done.returncode, done.stdout) == (code, output)
    assert told in done.stderr


def test_the_output_comes_as_it_is_stored(controller: str, sandboxes: Database) -> None:
    done = run(controller, "submit", r"printf 'caf\303\251 \377 \r\n'")
    assert done.stdout.encode() == "caf\u00e9 \ufffd \n".encode()  # text mode reads \r\n as \n
    assert sandboxes.execute("select output from sandbox_results").fetchone() == {"output": "caf\u00e9 \ufffd \r\n"}


SIGNALS = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGQUIT: 131, signal.SIGTERM: 143}


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_signal_cancels_and_waits_for_the_end(
    controller: str, sandboxes: Database, number: signal.Signals, code: int
) -> None:
    process = start(controller, "submit", "echo begun; sleep 60")
    id = the_row(sandboxes, "state = 'running'")["id"]
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (code, "begun\n")
    assert f"submit: received {number.name}, cancelling sandbox {id}\n" in err
    assert "cancel requested" in err
    assert err.splitlines()[-1].endswith("cancelled  Cancelled: cancelled while it ran")


@pytest.mark.parametrize(("number", "code"), SIGNALS.items())
def test_a_second_signal_leaves_at_once_and_says_where_to_look(
    database: str, sandboxes: Database, number: signal.Signals, code: int
) -> None:
    process = start(database, "submit", "true")
    id = the_row(sandboxes)["id"]
    process.send_signal(signal.SIGINT)
    the_row(sandboxes, "cancel_requested_at is not null")
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == code
    assert f"python -m controller explain {id}" in err.splitlines()[-1]


def test_a_cancel_is_not_waited_for_where_no_controller_would_tell_its_end(database: str, sandboxes: Database) -> None:
    process = start(database, "submit", "true")
    the_row(sandboxes)
    sandboxes.execute(
        "create or replace function sandbox_now() returns timestamptz language sql stable parallel safe"
        " return clock_timestamp() + interval '1 minute'"
    )
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143
    assert err.splitlines()[-1].endswith("cancelled; no controller is connected, so it will never start")


def test_two_signals_in_one_moment_still_cancel(database: str, sandboxes: Database) -> None:
    process = start(database, "submit", "true")
    the_row(sandboxes)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert process.returncode in (130, 143)  # of two that wait, the lower comes first
    the_row(sandboxes, "cancel_requested_at is not null")


def test_a_signal_before_the_request_leaves_and_asks_for_nothing(database: str, sandboxes: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start(f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x", "submit", "true")
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (143, "", "submit: ended by SIGTERM: no sandbox was requested\n")


def test_ctrl_c_while_it_starts_leaves_no_trace() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "controller", "submit", "true"]
    process = subprocess.Popen(command, env=environment(""), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("aiohttp" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(DEADLINE) == -signal.SIGINT


def test_a_signal_in_the_middle_of_the_insert_leaves_no_row_that_is_not_cancelled(
    database: str, sandboxes: Database
) -> None:
    with rows(database) as other, other.transaction():
        other.execute("lock table sandboxes in access exclusive mode")
        process = start(database, "submit", "true")
        waits = "select from pg_stat_activity where wait_event_type = 'Lock' and query like '%insert into sandboxes (%'"
        until("an insert that waits", lambda: sandboxes.execute(waits).rowcount)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert "cancelling" in process.stderr.readline()
    id = the_row(sandboxes, "cancel_requested_at is not null")["id"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 143
    assert str(id) in err


async def test_a_signal_cancels_though_the_connection_says_nothing_any_more(database: str, sandboxes: Database) -> None:
    async with Proxy(database) as proxy:
        process = start(proxy.url, "submit", "true")
        await asyncio.to_thread(the_row, sandboxes)
        proxy.silence()
        async with asyncio.timeout(DEADLINE):
            await proxy.held_back.wait()  # the next look, which gets no answer
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(the_row, sandboxes, "cancel_requested_at is not null")
        process.kill()
        process.communicate()


def test_a_signal_cancels_once_the_database_is_back(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path / "postgres")
    try:
        migrate(postgres.url, {})
        process = start(postgres.url, "submit", "true")
        with rows(postgres.url) as sandboxes:
            the_row(sandboxes)
            postgres.halt()
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        until("a word of the signal", lambda: "cancelling" in (process.stderr or sys.stdin).readline())
        postgres.restart()
        with rows(postgres.url) as sandboxes:
            the_row(sandboxes, "cancel_requested_at is not null")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 143
    finally:
        postgres.stop()


def test_a_lost_answer_to_the_insert_makes_one_row(database: str, sandboxes: Database) -> None:
    with closing(Client(database)) as client:
        request = {"id": UUID(int=5), "command": "a"}
        assert client.submit(request) == UUID(int=5)
        assert client.submit(request) is None
    assert the_row(sandboxes)["id"] == UUID(int=5)


def test_a_terminal_that_goes_away_cancels(controller: str, sandboxes: Database) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "controller", "submit", "sleep 60"]

    def take_terminal() -> None:
        heed_hangups()
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command, env=environment(controller), stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal
    )
    os.close(slave)
    the_row(sandboxes, "state = 'running'")
    os.close(master)
    assert process.wait(DEADLINE) == 129
    the_row(sandboxes, "state = 'cancelled'")


def on_terminal(url: str, *words: str, encoding: str = "utf-8") -> tuple[int, str]:
    """What a terminal on standard output gets, and the exit code."""
    master, slave = pty.openpty()
    tty.setraw(slave)  # else it would put a carriage return before each end of line
    command = [sys.executable, "-m", "controller", *words]
    ours = environment(url, PYTHONIOENCODING=encoding)
    process = subprocess.Popen(command, env=ours, stdin=slave, stdout=slave, stderr=subprocess.PIPE)
    os.close(slave)
    got = b""
    with suppress(OSError):  # EIO: the last that had it open is gone
        while chunk := os.read(master, 65536):
            got += chunk
    os.close(master)
    _, err = process.communicate(timeout=DEADLINE)
    assert b"Traceback" not in err
    return process.returncode, got.decode(encoding)


STEERS = (
    r"printf '\033]0;owned\007\033]52;c;bHM=\007\302\233 31m\033[8mhidden\rshown\b"
    r"\342\200\256txt\r\n\ttab caf\303\251\n'"
)
STEERED = "\x1b]0;owned\x07\x1b]52;c;bHM=\x07\x9b 31m\x1b[8mhidden\rshown\b\u202etxt\r\n\ttab café\n"
ESCAPED = r"\x1b]0;owned\x07\x1b]52;c;bHM=\x07\x9b 31m\x1b[8mhidden\rshown\x08\u202etxt" + "\r\n\ttab café\n"


def test_output_cannot_steer_a_terminal_unless_it_is_asked_to(controller: str) -> None:
    assert on_terminal(controller, "submit", STEERS) == (0, ESCAPED)
    assert on_terminal(controller, "submit", STEERS, encoding="ascii") == (0, ESCAPED.replace("é", r"\xe9"))
    assert on_terminal(controller, "submit", "--raw", STEERS) == (0, STEERED)


def test_what_is_no_terminal_gets_the_output_byte_for_byte(controller: str, tmp_path: Path) -> None:
    for words in (["submit", STEERS], ["submit", "--raw", STEERS]):
        with (tmp_path / "out").open("wb") as out:
            command = [sys.executable, "-m", "controller", *words]
            ours = environment(controller, PYTHONIOENCODING="ascii")
            subprocess.run(command, env=ours, stdout=out, stderr=subprocess.DEVNULL, check=True)
        assert (tmp_path / "out").read_bytes() == STEERED.encode()


@pytest.mark.parametrize(
    "words",
    ["| head -c 1 >/dev/null", "2>&1 | head -1 >/dev/null", ">&-", "2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"],
)
def test_streams_that_nobody_reads_change_no_end(controller: str, words: str, sandboxes: Database) -> None:
    for verb, code in (("submit 'yes | head -c 300000; exit 3'", 3), ("explain $ID", 0)):
        id = sandboxes.execute("select id from sandboxes").fetchone()
        ours = environment(controller, PY=sys.executable, ID=id and id["id"])
        told = subprocess.run(
            ["bash", "-c", f'"$PY" -m controller {verb} {words}; exit "${{PIPESTATUS[0]}}"'],
            env=ours, capture_output=True, timeout=DEADLINE, text=True,
        )  # fmt: skip
        assert told.returncode == code
        assert "Traceback" not in told.stderr
        assert "Exception ignored" not in told.stderr


def test_output_that_finds_no_room_is_told_in_a_sentence(controller: str) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "controller", "submit", "echo oh"]
        done = subprocess.run(command, env=environment(controller), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 125
    assert done.stderr.endswith("submit: standard output cannot be written to: No space left on device\n")


@pytest.mark.parametrize(
    "settings",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0"},
     {"LANG": "POSIX", "LC_ALL": "", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)  # fmt: skip
def test_a_terminal_of_any_characters_gets_one_screen(
    database: str, sandboxes: Database, settings: dict[str, str]
) -> None:
    with closing(Client(database)) as client:
        id = client.submit({"command": "echo € 😀 \x1b[2J" * 40, "tenant": "é€"})
    command = [sys.executable, "-m", "controller", "explain", str(id)]
    done = subprocess.run(command, env=environment(database, **settings), capture_output=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert b"\x1b" not in done.stdout


def test_what_never_ran_ends_with_125_and_says_why_even_where_no_notification_comes(
    database: str, sandboxes: Database
) -> None:
    process = start(database, "submit", "true")
    end(sandboxes, the_row(sandboxes)["id"], "ImagePullFailed")
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (125, "")
    assert "failed     ImagePullFailed: so it is" in err


def test_it_outlasts_a_restart_of_the_database(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path / "postgres")
    try:
        migrate(postgres.url, {})
        process = start(postgres.url, "submit", "true")
        with rows(postgres.url) as sandboxes:
            id = the_row(sandboxes)["id"]
        postgres.restart()
        with rows(postgres.url) as sandboxes:
            end(sandboxes, id, "StartTimeout")
        _, err = process.communicate(timeout=DEADLINE)
        assert process.returncode == 125
        assert "StartTimeout" in err
    finally:
        postgres.stop()


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--cpu", "0", "true"], "cpu_millis must be 1 to 256,000"),
        (["--priority", "9" * 30, "true"], "priority must be -32,768 to 32,767"),
        (["--env", "1A=b", "true"], "env keys must match [A-Za-z_][A-Za-z0-9_]*"),
        (["--image", "a b", "true"], "image must be an image reference of at most 500 characters"),
        ([""], "command must be 1 to 65,536 bytes"),
        (["\udcff"], "it has text that is not UTF-8"),
    ],
)
def test_a_refused_request_is_told_by_column_and_rule(
    database: str, sandboxes: Database, words: list[str], rule: str
) -> None:
    done = run(database, "submit", *words)
    assert done.returncode == 2
    assert done.stderr == f"submit: the database refuses this request: {rule}\n"
    assert done.stdout == ""
    assert sandboxes.execute("select from sandboxes").rowcount == 0


@pytest.mark.parametrize(("verb", "code"), [("submit", 125), ("explain", 1)])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "DATABASE_URL is not set"),
        ("postgresql://127.0.0.1:1/none", "the database of DATABASE_URL does not answer"),
        ("postgresql://127.0.0.1:1/none?colour=red", "DATABASE_URL has the parameter colour"),
    ],
)
def test_a_database_that_is_not_there_is_one_sentence(verb: str, code: int, url: str, told: str) -> None:
    done = run(url, verb, str(uuid4()))
    assert done.returncode == code
    assert done.stderr.startswith(f"{verb}: {told}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("verb", "code"), [("submit", 125), ("explain", 1)])
def test_a_database_without_a_queue_is_one_sentence(empty_database: str, verb: str, code: int) -> None:
    done = run(empty_database, verb, str(uuid4()))
    assert done.returncode == code
    assert "run `python -m controller migrate`" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("id", "told"),
    [("nope", "'nope' is not the id of a sandbox"), (str(UUID(int=1)), f"there is no sandbox {UUID(int=1)}")],
)
def test_explain_of_what_is_not_there_is_one_sentence(database: str, id: str, told: str) -> None:
    done = run(database, "explain", id)
    assert done.returncode == 1
    assert done.stderr.startswith(f"explain: {told}")
    assert len(done.stderr.splitlines()) == 1


def test_explain_tells_a_whole_life(controller: str, sandboxes: Database) -> None:
    assert run(controller, "submit", "--attempts", "2", "--", "echo oh; exit 3").returncode == 3
    done = run(controller, "explain", str(the_row(sandboxes, "cleaned_at is not null")["id"]))
    assert done.returncode == 0
    for told in ("failed, NonZeroExit, exit code 3", "queued again", "claimed (2)", "cleaned (2)", "3 bytes of output"):
        assert told in done.stdout
    assert len(done.stdout.splitlines()) <= 40


def test_explain_tells_the_place_in_the_queue(database: str, sandboxes: Database) -> None:
    sandboxes.execute("insert into sandbox_tenants (name, max_running) values ('ci', 0)")
    with closing(Client(database)) as client:
        sandboxes.execute("insert into sandboxes (command, tenant, priority) values ('a', 'ci', 1), ('b', 'ci', 0)")
        id = client.submit({"command": "c", "tenant": "ci"})
    told = run(database, "explain", str(id)).stdout
    assert "its turn: 2 ahead of it in the queue of tenant ci" in told
    assert "its limit: 0, reached" in told
    assert "none is connected to this database" in told


def test_controllers_are_counted_only_for_who_waits_long(database: str, sandboxes: Database) -> None:
    long_ago = "now() - interval '1 minute'"
    query = f"insert into sandboxes (command, created_at) values ('a', {long_ago}), ('b', now()) returning id"
    found = sandboxes.execute(query).fetchall()
    with closing(Client(database)) as client:
        told = {each.id: each.controllers for each in client.progress([row["id"] for row in found])}
    assert list(told.values()) == [0, None]


def test_an_idempotency_key_makes_one_row(database: str, sandboxes: Database) -> None:
    with closing(Client(database)) as client:
        first, second = (client.submit({"command": "a", "idempotency_key": "k"}) for _ in range(2))
    assert the_row(sandboxes)["id"] == first
    assert second is None


def test_a_requester_needs_no_more_than_its_own_rights(database: str, sandboxes: Database) -> None:
    with closing(Client(database)) as client:
        client._requests._connection.execute("set role sandbox_requester")
        id = client.submit({"command": "a", "env": {"A": "b"}})
        assert id is not None
        client.cancel(id)
        assert client.progress([id])[0].state == "queued"
        assert client.output(id) == ("", False)
        assert [len(each) for each in client.facts(id)] == [1, 0, 0]
        with pytest.raises(RequestRefused, match="max_attempts must be 1 to 100"):
            client.submit({"command": "a", "max_attempts": 0})
