"""A fake cluster, a real Postgres, and whole controllers on both: at work, killed, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from controller.backends.kubernetes.api import ApiConfig
from controller.backends.kubernetes.backend import PROBE, KubernetesBackend
from controller.backends.kubernetes.manifest import RECORDED, job_manifest
from controller.backends.kubernetes.options import JobOptions
from controller.protocol.model import Key, Launch
from controller.reconcile.controller import Controller
from tests.support import crashing
from tests.support.control import Table, control, table
from tests.support.crashing import Failpoint
from tests.support.fake_kubernetes.api import Answer, FakeApi, Fault
from tests.support.fake_kubernetes.cluster import FakeCluster
from tests.support.fake_kubernetes.controllers import finished
from tests.support.fake_kubernetes.store import JOBS, Object
from tests.support.forked import Forked

IMAGE = "image"
WHOLE_SECONDS = 45.0  # of one test
Amiss = Fault | Answer | None
Deed = Callable[[str], Amiss]  # takes the name that the request is about


@dataclass
class Requests:
    """What befalls the requests of controllers: the first of a kind, so many times, or as long as it is not lifted."""

    kept: list[tuple[str, str, Deed | Amiss]] = field(default_factory=list)  # verb, resource, what
    counts: list[int] = field(default_factory=list)
    came: list[tuple[float, str, str]] = field(default_factory=list)  # when, verb, resource

    def meet(self, verb: str, resource: str, what: Deed | Amiss, times: int = 1) -> None:
        """The next requests of that kind meet this: a fault, or something that is done first."""
        self.kept.append((verb, resource, what))
        self.counts.append(times)

    def lift(self) -> None:
        """From now on they meet nothing."""
        self.counts = [0 for _ in self.counts]

    def of(self, verb: str, resource: str) -> list[float]:
        """When those of that kind came: monotonic seconds."""
        return [at for at, came, what in self.came if (came, what) == (verb, resource)]

    def __call__(self, verb: str, resource: str, name: str) -> Amiss:
        if name == PROBE.key.name:
            return None
        self.came.append((time.monotonic(), verb, resource))
        for number, (wanted, kind, what) in enumerate(self.kept):
            if (wanted, kind) == (verb, resource) and self.counts[number]:
                self.counts[number] -= 1
                return what(name) if callable(what) else what
        return None


@dataclass
class Scene:
    """One cluster, one database, and any number of controllers on them."""

    url: str
    directory: Path
    api: FakeApi
    asked: Table
    requests: Requests
    installation: str
    processes: list[Forked] = field(default_factory=list)

    @property
    def cluster(self) -> FakeCluster:
        """The cluster behind the API."""
        return self.api.cluster

    @property
    def kubeconfig(self) -> Path:
        """What names the API."""
        return self.directory / "kubeconfig"

    def backend(self, list_seconds: float = 0.3, api: ApiConfig | None = None) -> KubernetesBackend:
        """An adapter as each controller has its own."""
        return KubernetesBackend(
            self.cluster.namespace, IMAGE, list_seconds=list_seconds, kubeconfig=str(self.kubeconfig), api=api
        )

    def control(
        self, list_seconds: float = 0.3, api: ApiConfig | None = None, **more: Any
    ) -> AbstractAsyncContextManager[Controller]:
        """A controller in this process. `more`: what `control` takes, settings included."""
        return control(self.url, self.backend(list_seconds, api), **({"sandbox_lease_seconds": 2} | more))

    def started(self, failpoint: Failpoint | None = None) -> Forked:
        """A controller in a process of its own, which kills or stops itself at that point."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
        env |= {"DATABASE_URL": self.url, "HTTP_PORT": "0", "SANDBOX_BACKEND": "kubernetes"}
        env |= {"SANDBOX_NAMESPACE": self.cluster.namespace, "SANDBOX_LEASE_SECONDS": "1"}
        env |= {"SANDBOX_POLL_SECONDS": "0.1"}
        log = self.directory / "controllers.log"
        made = Forked(crashing.run, "kubernetes", self.kubeconfig, failpoint, environment=env, log=log)
        self.processes.append(made)
        return made

    async def crash(self, point: str) -> None:
        """A controller that works until it kills itself there."""
        assert await self.started(Failpoint(point)).ended() == -signal.SIGKILL, self.log()

    async def stopped(self, point: str) -> Forked:
        """A controller that works until it stops itself there; send it SIGCONT."""
        made = self.started(Failpoint(point, number=signal.SIGSTOP))
        while psutil.Process(made.pid).status() != psutil.STATUS_STOPPED:
            assert made.poll() is None, self.log()
            await asyncio.sleep(0.02)
        return made

    def log(self) -> str:
        """What the controllers in processes of their own said."""
        path = self.directory / "controllers.log"
        return path.read_text()[-5000:] if path.exists() else ""

    def sql(self, statement: str, *values: object) -> None:
        """The owner's hand in the database, from where nothing can be awaited."""
        with psycopg.connect(self.url) as connection:
            connection.execute(statement.encode(), values)

    def cancel(self, sandbox: Any) -> None:
        """Its requester asks for its end, at this very moment."""
        self.sql("update sandboxes set cancel_requested_at = now() where id = %s", sandbox)

    async def pod(self, sandbox: Any) -> str:
        """The name of the first attempt's pod, once it is there."""
        name = f"sandbox-{sandbox}"
        await self.cluster.until(lambda: bool(self.cluster.pods(name)))
        found: str = self.cluster.pods(name)[0]["metadata"]["name"]
        return found

    async def running(self, command: str = "sleep 600", **columns: Any) -> tuple[Any, str]:
        """A sandbox that runs, and the name of its pod."""
        sandbox = await self.asked.insert(command, **columns)
        await self.asked.until(sandbox, lambda row: row["state"] == "running")
        return sandbox, await self.pod(sandbox)

    def make_job(self, sandbox: Any, command: str = "exit 9", *, holder: str | None = None) -> None:
        """The Job of a first attempt, from nobody; `holder`: what keeps it from going once it is deleted."""
        launch = Launch(Key(sandbox, 1), command, 60)
        body = job_manifest(launch, IMAGE, self.installation, JobOptions(), 600)
        body["metadata"]["finalizers"] = [holder] if holder else []
        self.cluster.create(JOBS, body)

    async def attempts(self, sandbox: Any) -> list[tuple[int, str]]:
        """Each attempt that is over, with its reason."""
        statement = "select attempt, reason from sandbox_attempts where sandbox_id = %s order by attempt"
        return [(row["attempt"], row["reason"]) for row in await self.asked.rows(statement, sandbox)]

    async def output(self, sandbox: Any) -> str | None:
        """What its requester can read."""
        (row,) = await self.asked.rows("select output from sandbox_results where id = %s", sandbox)
        found: str | None = row["output"]
        return found

    async def swept(self) -> None:
        """Waits until no object is left but those whose outcome is recorded."""
        await self.cluster.until(lambda: not self.unrecorded(), 15)

    def unrecorded(self) -> list[str]:
        """Jobs whose outcome nobody has recorded, and pods of none that is."""
        jobs = self.cluster.jobs()
        recorded = {job["metadata"]["name"] for job in jobs if RECORDED in job["metadata"].get("annotations", {})}
        names = {job["metadata"]["name"] for job in jobs}
        owned = {pod["metadata"]["name"]: _job_of(pod) for pod in self.cluster.pods()}
        return sorted(names - recorded) + [name for name, job in owned.items() if job not in recorded]

    async def close(self) -> None:
        """What must be true after every test, and the end of its processes."""
        for process in self.processes:
            process.kill()
            await process.ended()

    async def keeps_its_promises(self) -> None:
        """Every row ended and cleaned, no attempt started twice, and nothing left but what the cluster removes."""
        left = await self.asked.rows("select * from sandboxes where finished_at is null or cleaned_at is null")
        assert not left
        assert all(count == 1 for count in self.cluster.starts.values()), self.cluster.starts
        assert not self.unrecorded()
        await self.cluster.until(lambda: all(finished(job) for job in self.cluster.jobs()))
        self.cluster.expire()
        await self.cluster.until(lambda: not self.cluster.jobs() and not self.cluster.pods())


def _job_of(pod: Object) -> str | None:
    return (pod["metadata"].get("labels") or {}).get("batch.kubernetes.io/job-name")


@asynccontextmanager
async def scene(url: str, directory: Path, cluster: Mapping[str, Any], api: Mapping[str, Any]) -> AsyncIterator[Scene]:
    """A scene that is served until the end."""
    requests = Requests()
    async with FakeApi(FakeCluster(**cluster), fault=requests, **api) as served, table(url) as asked:
        served.kubeconfig(directory / "kubeconfig")
        (row,) = await asked.rows("select id from sandbox_installation")
        made = Scene(url, directory, served, asked, requests, str(row["id"]))
        try:
            yield made
        finally:
            await made.close()


@asynccontextmanager
async def play(
    url: str, directory: Path, *, cluster: Mapping[str, Any] | None = None, **api: Any
) -> AsyncIterator[Scene]:
    """A scene for a whole test, after which every promise must have been kept."""
    async with asyncio.timeout(WHOLE_SECONDS), scene(url, directory, cluster or {}, api) as made:
        try:
            yield made
            await made.keeps_its_promises()
        except TimeoutError:
            rows = await made.asked.rows("select id, state, reason, waiting, attempt, run_uid from sandboxes")
            pytest.fail(f"waited too long: {rows}; {made.unrecorded()}\n{made.log()}")
