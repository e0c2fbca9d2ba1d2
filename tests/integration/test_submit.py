"""`submit` and `explain` as a person runs them, against a real queue and a real controller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

from controller.queue.client import Client, RequestRefused
from controller.queue.migrate import migrate
from tests.support.stage import Postgres

DEADLINE = 30.0  # seconds that a condition may take to come true
Database = psycopg.Connection[DictRow]


def environment(url: str, **settings: object) -> dict[str, str]:
    return os.environ | {"DATABASE_URL": url} | {name: str(value) for name, value in settings.items()}


def start(url: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(url), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
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
    with (tmp_path / "log").open("wb") as log:
        ours = environment(database, SANDBOX_OUTPUT_BYTES=1024, **settings)
        process = subprocess.Popen([sys.executable, "-m", "controller", "run"], env=ours, stdout=log, stderr=log)
        listening = (
            "select from pg_stat_activity where datname = current_database() and application_name = 'sandbox-listener'"
        )
        try:
            until(
                "a controller that listens", lambda: process.poll() is not None or sandboxes.execute(listening).rowcount
            )
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
            except subprocess.TimeoutExpired:
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
        (["--", "yes | head -c 5000"], 0, "y\n" * 512, "its last 1,024 bytes are here"),
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


def test_ctrl_c_cancels_and_waits_for_the_end(controller: str, sandboxes: Database) -> None:
    process = start(controller, "submit", "echo begun; sleep 60")
    the_row(sandboxes, "state = 'running'")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "asked to cancel it" in err
    assert err.splitlines()[-1].endswith("cancelled  Cancelled: cancelled while it ran")


def test_a_second_ctrl_c_leaves_at_once_and_says_where_to_look(database: str, sandboxes: Database) -> None:
    process = start(database, "submit", "true")
    id = the_row(sandboxes)["id"]
    process.send_signal(signal.SIGINT)
    the_row(sandboxes, "cancel_requested_at is not null")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert f"python -m controller explain {id}" in err.splitlines()[-1]


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
    sandboxes.execute("insert into tenants (name, max_running) values ('ci', 0)")
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
        client._connection.execute("set role sandbox_requester")
        id = client.submit({"command": "a", "env": {"A": "b"}})
        assert id is not None
        client.cancel(id)
        assert client.progress([id])[0].state == "queued"
        assert client.output(id) == ("", False)
        assert [len(each) for each in client.facts(id)] == [1, 0, 0]
        with pytest.raises(RequestRefused, match="max_attempts must be 1 to 100"):
            client.submit({"command": "a", "max_attempts": 0})
