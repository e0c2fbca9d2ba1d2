"""What every test may ask for: a real Postgres, and a database of its own in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from xdist.remote import Producer

from controller.db.migrate import migrate
from tests.support import summary
from tests.support.postgres import Postgres
from tests.support.scheduling import Together

for name in [name for name in os.environ if name.startswith(("SANDBOX_", "DATABASE_URL", "HTTP_PORT", "LOG_FORMAT"))]:
    del os.environ[name]  # a developer's settings must not reach the tests

# How long an example takes says something about the machine, not about the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    """The order in which workers get tests."""
    return Together(config, log)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was proved, and why the rest was skipped."""
    if told := list(summary.lines(terminalreporter.stats)):
        terminalreporter.section("what ran")
        terminalreporter.write("\n".join([*told, ""]))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a server that may be filled: TEST_POSTGRES_URL, else an embedded one."""
    given = os.environ.get("TEST_POSTGRES_URL")
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="sandbox-pg-") as directory:
        server = Postgres(Path(directory) / "data")
        try:
            yield server.url
        finally:
            server.stop()


@pytest.fixture(scope="session")
def template(postgres: str) -> Iterator[str]:
    """The name of a migrated database to copy."""
    name = f"sandbox_template_{uuid4().hex[:8]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(SQL("create database {}").format(Identifier(name)))
        migrate(in_database(postgres, name), {"sandbox_controller": "controller", "sandbox_requester": "requester"})
        yield name
        connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@pytest.fixture
def database(postgres: str, template: str) -> Iterator[str]:
    """The URL of a migrated, empty database of this test's own, as its owner."""
    name = f"sandbox_{uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(SQL("create database {} template {}").format(Identifier(name), Identifier(template)))
        with psycopg.connect(in_database(postgres, name)) as made:  # a copy is an installation of its own, from here on
            made.execute("update sandbox_installation set id = gen_random_uuid()")
        yield in_database(postgres, name)
        connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


@pytest.fixture
def empty_database(postgres: str) -> Iterator[str]:
    """The URL of a database without any schema."""
    name = f"sandbox_{uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(SQL("create database {}").format(Identifier(name)))
        yield in_database(postgres, name)
        connection.execute(SQL("drop database {} with (force)").format(Identifier(name)))


def in_database(url: str, name: str) -> str:
    """The same server's URL with another database."""
    head, _, query = url.partition("?")
    return f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
