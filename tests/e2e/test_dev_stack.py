"""The stack on Docker, for real: from nothing to an outcome, and back to nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from tests.support.engines import need_docker
from tests.support.ports import free_ports
from tests.support.pulumi import POSTGRES, Stack, need_pulumi

pytestmark = pytest.mark.alone


def docker(*words: str) -> str:
    """What the docker command writes."""
    both = subprocess.STDOUT if words[0] == "logs" else None
    return subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=both, text=True, check=True).stdout


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is not there yet, and is gone afterwards."""
    need_docker()
    need_pulumi()
    database_port, http_port = free_ports(2)
    config = {
        "target": "docker",
        "postgresImage": POSTGRES,
        "databasePort": str(database_port),
        "httpPort": str(http_port),
    }
    made = Stack.make(f"t{uuid4().hex[:8]}", tmp_path, config)
    yield made
    made.destroy()
    for image in docker("images", "--format", "{{.Repository}}:{{.Tag}}", f"ci-fixer-sandbox-*:{made.name}").split():
        docker("rmi", image)


def until(url: str, sandbox: str, state: str) -> dict[str, Any]:
    """The sandbox's result, once it has that state."""
    deadline = time.monotonic() + 60
    with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
        while True:
            row = connection.execute("select * from sandbox_results where id = %s", [sandbox]).fetchone()
            assert row is not None
            if row["state"] == state:
                return row
            assert time.monotonic() < deadline, row
            time.sleep(0.1)


def rotated(stack: Stack, url: str) -> str:
    """The requester's URL, once each login has a new password, as docs/stacks.md gives it one."""
    alter, owners = "alter role postgres password 'new'", f"ci-fixer-sandbox-{stack.name}-database"
    docker("exec", owners, "psql", "--username", "postgres", "--dbname", "sandbox", "--command", alter)
    stack.run("config", "set", "--secret", "databasePassword", "new")
    stack.up("--replace", "**controller-password", "--replace", "**requester-password")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)
    return str(stack.outputs()["requester_database_url"])


@pytest.mark.timeout(600)
def test_a_dev_stack_gives_sandboxes_changes_by_its_configuration_and_leaves_nothing(stack: Stack) -> None:
    stack.umask(0o077)
    stack.up()
    outputs = stack.outputs()
    url = outputs["requester_database_url"]
    asked_for = stack.request()
    assert until(url, asked_for, "succeeded")["output"] == "hello\n"
    passwords = [str(urlsplit(outputs[name]).password) for name in ("database_url", "requester_database_url")]
    assert stack.shows(passwords) == []
    logs = "".join(docker("logs", f"ci-fixer-sandbox-{stack.name}-{one}") for one in ("app", "migration", "database"))
    assert logs
    assert [password for password in passwords if password in logs] == []
    stack.umask(0o002)
    stack.up("--expect-no-changes")

    before = docker("inspect", "--format", "{{.Id}}", outputs["app_container"])
    stack.set("maxRunning", "7")
    stack.up()
    assert docker("inspect", "--format", "{{.Id}}", outputs["app_container"]) != before
    assert "SANDBOX_MAX_RUNNING=7" in docker("inspect", outputs["app_container"])

    with psycopg.connect(url, autocommit=True) as connection:
        asked = connection.execute("insert into sandboxes (command) values ('sleep 600') returning id").fetchone()
    assert asked is not None
    until(url, asked[0], "running")
    url = rotated(stack, url)
    assert until(url, stack.request(), "succeeded")["output"] == "hello\n"
    until(url, asked[0], "running")
    assert "nothing is left" in docker("exec", outputs["app_container"], "python", "-m", "controller", "drain")
    assert until(url, asked[0], "cancelled")["reason"] == "Cancelled"
    assert docker("ps", "--all", "--quiet", "--filter", f"label=sandboxId={asked[0]}") == ""

    stack.destroy()
    name = f"name=ci-fixer-sandbox-{stack.name}"
    assert docker("ps", "--all", "--quiet", "--filter", name) == ""
    assert docker("network", "ls", "--quiet", "--filter", name) == ""
    assert docker("volume", "ls", "--quiet", "--filter", name) == ""


def test_what_stops_an_up_halfway_is_told_without_a_stack_trace(stack: Stack) -> None:
    stack.set("postgresImage", "localhost:1/postgres:15")
    written = stack.run("up", "--yes", "--skip-preview", fails=True)
    assert "localhost:1/postgres:15" in written
    assert "Traceback" not in written


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("target", "dokcer", "target takes docker or kubernetes; it is 'dokcer'"),
        ("databasePort", "70000", "databasePort takes a whole number from 1 to 65535"),
        ("databsePort", "1", "databsePort is not a key of this project; did you mean databasePort?"),
    ],
)
def test_a_bad_configuration_is_one_clear_error_before_anything_is_made(
    stack: Stack, key: str, value: str, words: str
) -> None:
    stack.refuses(key, value, words)


@pytest.mark.timeout(600)
def test_a_controller_that_does_not_start_is_told_in_its_own_words_and_the_next_up_goes_on(stack: Stack) -> None:
    stack.set("dockerSocketGroup", "4242")
    written = stack.run("up", "--yes", "--skip-preview", fails=True)
    app = f"ci-fixer-sandbox-{stack.name}-app"
    assert f"container {app} is not ready" in written
    assert "no right to use the Docker engine" in written
    assert "Traceback" not in written
    stack.run("config", "rm", "dockerSocketGroup")
    stack.up()
    assert docker("inspect", "--format", "{{.State.Health.Status}}", app).strip() == "healthy"
    stack.up("--expect-no-changes")
