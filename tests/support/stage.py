"""A stage for crashes: a Postgres that can be restarted, controllers that can be killed, commands that leave marks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import psycopg
from psycopg.rows import DictRow, dict_row

from controller.db.migrate import migrate
from tests.support import crashing, remote_engine
from tests.support.cluster import session_namespace
from tests.support.forked import Forked
from tests.support.marks import MarkListener
from tests.support.remote_engine import RemoteBackend

ROOT = Path(__file__).parents[2]


class Stage:
    """One backend's engine with a database, and any number of controllers."""

    def __init__(self, kind: str, directory: Path, url: str, **settings: object) -> None:
        self.kind, self.directory, self.url = kind, directory, url
        self.marks = directory / "marks"
        self.marks.mkdir()
        self.marks.chmod(0o777)
        self.namespace = session_namespace() if kind == "kubernetes" else None
        self.listener = MarkListener(self.marks) if kind == "kubernetes" else None
        self.place = {
            "process": directory / "work",
            "docker": self.marks,
            "memory": directory / "engine",
            "kubernetes": Path(self.namespace.kubeconfig if self.namespace else ""),
        }[kind]
        self.controllers: list[Forked] = []
        self._settings = {"LEASE_SECONDS": 3, "POLL_SECONDS": 0.2, "MAX_RUNNING": 50} | settings
        self._engine: Forked | None = None
        self._log = directory / "controllers.log"
        migrate(url, {})
        if kind == "memory":
            self._engine = Forked(remote_engine.run, self.place, environment=os.environ, log=self._log)
            self.wait("the fake engine", self.place.exists)

    def start(self, failpoint: crashing.Failpoint | None = None) -> Forked:
        """Another controller, which dies at that point if one is named."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        env |= {f"SANDBOX_{name}": str(value) for name, value in self._settings.items()}
        env |= {"DATABASE_URL": self.url, "HTTP_PORT": "0"}
        if self.namespace is not None:
            env["SANDBOX_NAMESPACE"] = self.namespace.name
        started = Forked(crashing.run, self.kind, self.place, failpoint, environment=env, log=self._log)
        self.controllers.append(started)
        return started

    def kill(self, controller: Forked, number: int = signal.SIGKILL) -> None:
        """Sends a signal; waits for the end if it is one that ends."""
        controller.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            controller.wait(timeout=60)
            self.controllers.remove(controller)

    def insert(self, commands: Sequence[tuple[str, int]], max_attempts: int = 1) -> list[UUID]:
        """Asks for sandboxes (command, timeout); each command first leaves a mark under its sandbox's id."""
        ids = [uuid4() for _ in commands]
        rows = [
            (one, f"{self._mark(one)}; {command}", timeout, max_attempts)
            for one, (command, timeout) in zip(ids, commands, strict=True)
        ]
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            cursor.executemany(
                "insert into sandboxes (id, command, timeout_seconds, max_attempts, memory_mib, disk_mib, cpu_millis)"
                " values (%s, %s, %s, %s, 64, 16, 500)",
                rows,
            )
        return ids

    def _mark(self, one: UUID) -> str:
        """What a command does first: it leaves a mark outside of all that the controller writes."""
        if self.listener is not None:
            return f"echo {one} | nc {self.listener.host} {self.listener.port}"
        return f"echo x >> {'/marks' if self.kind == 'docker' else self.marks}/{one}"

    def query(self, statement: str, *values: object) -> list[DictRow]:
        """Asks the database, waiting out its absence."""
        until = time.monotonic() + 30
        while True:
            try:
                with psycopg.connect(self.url, row_factory=dict_row, autocommit=True) as connection:
                    cursor = connection.execute(statement.encode(), values)
                    return cursor.fetchall() if cursor.description else []
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def wait_until_done(self, seconds: float) -> None:
        """Waits until every row is terminal and cleaned."""

        def done() -> bool:
            return not self.query("select 1 from sandboxes where finished_at is null or cleaned_at is null limit 1")

        self.wait("every row ended and cleaned", done, seconds, 0.2)

    def wait_until_empty(self) -> None:
        """Waits until nothing is left on the engine: what a crash left without a row is swept at the second look."""
        self.wait("the engine to be empty", lambda: not self.leftovers(), 30, 0.2)

    def starts(self) -> Counter[str]:
        """How often each sandbox's command ran, by the marks that the commands themselves left."""
        if self.kind == "memory":
            starts: dict[Any, int] = asyncio.run(RemoteBackend(self.place).call("starts"))
            counted: Counter[str] = Counter()
            for key, count in starts.items():
                counted[str(key.sandbox_id)] += count
            return counted
        return Counter({path.name: len(path.read_text().splitlines()) for path in self.marks.iterdir()})

    def leftovers(self) -> list[str]:
        """What is left on the engine: runs, containers, processes."""
        if self.kind == "memory":
            return asyncio.run(self._listed())
        if self.kind in ("docker", "kubernetes"):
            installation = self.query("select id from sandbox_installation")[0]["id"]
        if self.namespace is not None:
            return self.namespace.leftovers(f"installation={installation}")
        if self.kind == "docker":
            words = ["docker", "ps", "-aq", "--filter", f"label=installation={installation}"]
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        runs = [str(path) for path in self.place.rglob("sandbox-*")]
        mine = (str(self.place), str(self.marks))
        known = {os.getpid(), *(controller.pid for controller in self.controllers)}
        for process in psutil.process_iter(["pid", "cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if any(path in line for path in mine) and process.info["pid"] not in known:
                runs.append(f"{process.info['pid']}: {line[:200]}")
        return runs

    def _marks(self) -> list[str]:
        """What killed controllers left on the Docker engine to be known by."""
        installation = self.query("select id from sandbox_installation")[0]["id"]
        words = ["docker", "volume", "ls", "-q", "--filter", f"label=installation={installation}"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()

    def objects(self) -> list[str]:
        """Every Job and pod of this stage, the recorded ones too."""
        assert self.namespace is not None
        selector = f"installation={self.query('select id from sandbox_installation')[0]['id']}"
        found = [(kind, one) for kind in ("jobs", "pods") for one in self.namespace.objects(kind, selector)]
        return [f"{kind}/{one['metadata']['name']}" for kind, one in found]

    async def _listed(self) -> list[str]:
        async for sight in RemoteBackend(self.place).observe():
            return [seen.run_uid for seen in getattr(sight, "runs", ())]
        return []

    def close(self) -> None:
        """Ends every process of the stage, and removes what is left on the engine."""
        for controller in list(self.controllers):
            controller.send_signal(signal.SIGCONT)
            self.kill(controller)
        if self._engine is not None:
            self._engine.kill()
            self._engine.wait()
        if self.kind == "docker":
            left = self.leftovers()
            if left:
                subprocess.run(["docker", "rm", "-fv", *left], capture_output=True, check=False)
            for mark in self._marks():
                subprocess.run(["docker", "volume", "rm", mark], capture_output=True, check=False)
        if self.namespace is not None:
            for path in self.leftovers():
                self.namespace.delete(path)
        if self.listener is not None:
            self.listener.close()

    def log(self) -> str:
        """What the controllers logged."""
        return self._log.read_text() if self._log.exists() else ""

    def wait(self, what: str, true: Any, seconds: float = 30, pause: float = 0.02) -> None:
        """Waits for a condition."""
        until = time.monotonic() + seconds
        while not true():
            if time.monotonic() > until:
                raise TimeoutError(f"waited {seconds} s for {what}\n{self.log()[-6000:]}")
            time.sleep(pause)


@contextmanager
def stage(kind: str, directory: Path, url: str, **settings: object) -> Iterator[Stage]:
    """A stage, cleared at the end."""
    made = Stage(kind, directory, url, **settings)
    try:
        yield made
    finally:
        made.close()
