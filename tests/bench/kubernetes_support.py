"""What the measurements on a cluster share: a place of their own, the controller's process, a bare client's process."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from controller.backends.kubernetes.backend import KubernetesBackend
from controller.backends.kubernetes.manifest import job_manifest
from controller.backends.kubernetes.options import JobOptions
from controller.protocol.model import Key, Launch
from tests.bench.kubernetes_cluster import Json, Plain, Watcher, plain, watching
from tests.bench.scale import peak
from tests.bench.support import fresh
from tests.support.cluster import IMAGE, NAMESPACES, Admin, Namespace, Refusal, make_namespace

ROOT = Path(__file__).parents[2]
ANYWHERE = JobOptions()
NOWHERE = JobOptions(nodeSelector={"type": "nowhere"})  # no node has it: pods are made, and stay pending
SIMULATED = JobOptions(
    nodeSelector={"type": "kwok"}, tolerations=({"key": "kwok.x-k8s.io/node", "operator": "Exists"},)
)
CPU_MILLIS, MEMORY_MIB, DISK_MIB = 100, 64, 16
TIMEOUT_SECONDS = 900
START_SECONDS = 600.0
LAUNCH = Launch(
    Key(UUID(int=0), 1), "true", TIMEOUT_SECONDS, cpu_millis=CPU_MILLIS, memory_mib=MEMORY_MIB, disk_mib=DISK_MIB
)
READY = "select from pg_stat_activity where datname = current_database() and application_name = 'sandbox-listener'"


@dataclass(frozen=True)
class Place:
    """One measurement's own database and namespace, a bare client of it, and a watcher."""

    url: str
    namespace: Namespace
    client: Plain
    watcher: Watcher


@asynccontextmanager
async def place(server: str) -> AsyncIterator[Place]:
    """A place, gone with all that was in it at the end: what is left would disturb the next measurement."""
    namespace = make_namespace()
    try:
        with fresh(server) as url:
            async with plain(namespace.kubeconfig, _paths(namespace)) as client, watching(client) as watcher:
                yield Place(url, namespace, client, watcher)
    finally:
        namespace.remove()
        await asyncio.to_thread(_until_gone, namespace)


def _paths(namespace: Namespace) -> dict[str, str]:
    return {kind: namespace.path(kind) for kind in ("jobs", "pods")}


def _until_gone(namespace: Namespace, seconds: float = 1800) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            namespace.admin.call("GET", f"{NAMESPACES}/{namespace.name}", timeout=60)
        except Refusal as error:
            if error.status == 404:
                return
            raise
        time.sleep(1)
    raise TimeoutError(f"the namespace {namespace.name} is still there after {seconds:.0f} s")


def simulated_nodes() -> int:
    """How many nodes only pretend to run pods. Raises SystemExit where there is none."""
    found = len(Admin().call("GET", "/api/v1/nodes?labelSelector=type%3Dkwok")["items"])
    if not found:
        raise SystemExit("this figure needs simulated nodes: kwok's, labelled type=kwok, tainted kwok.x-k8s.io/node")
    return found


@dataclass
class Child:
    """A controller's process: what it used, once it has ended."""

    pid: int
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    posts: dict[str, Sequence[float]] = field(default_factory=dict)  # Job: when its POST was sent, and answered


@asynccontextmanager
async def controller(at: Place, options: JobOptions, max_running: int = 100_000) -> AsyncIterator[Child]:
    """A controller in a process of its own, with the login that is shipped."""
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as directory:
        report, log = Path(directory) / "report.json", Path(directory) / "log"
        with log.open("wb") as out:
            words = [sys.executable, "-m", "tests.bench.kubernetes_controller", str(report)]
            env = _environment(at, options, max_running)
            process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=env, stderr=out)
        child = Child(process.pid)
        try:
            yield child
            if process.returncode is not None:
                raise RuntimeError(f"the controller ended: {log.read_text()[-3000:]}")
            child.peak_bytes = peak(process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
        found = json.loads(report.read_text())
        child.requests, child.posts, child.cpu_seconds = found["requests"], found["posts"], found["cpu_seconds"]


def _environment(at: Place, options: JobOptions, max_running: int) -> dict[str, str]:
    asked = {"nodeSelector": dict(options.nodeSelector), "tolerations": list(options.tolerations)}
    return {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")} | {
        "DATABASE_URL": at.url,
        "KUBECONFIG": at.namespace.kubeconfig,
        "HTTP_PORT": "0",
        "SANDBOX_BACKEND": "kubernetes",
        "SANDBOX_NAMESPACE": at.namespace.name,
        "SANDBOX_IMAGE": IMAGE,
        "SANDBOX_MAX_RUNNING": str(max_running),
        "SANDBOX_START_DEADLINE_SECONDS": str(START_SECONDS),
        "SANDBOX_JOB_OPTIONS": json.dumps(asked),
    }


async def until_ready(at: Place) -> None:
    """Waits until the controller listens, and is past its first looks."""
    async with await psycopg.AsyncConnection.connect(at.url, autocommit=True) as connection, asyncio.timeout(60):
        while not (await connection.execute(READY)).rowcount:
            await asyncio.sleep(0.05)
    await asyncio.sleep(3.0)


INSERT = (
    "insert into sandboxes (id, command, timeout_seconds, cpu_millis, memory_mib, disk_mib)"
    " select unnest(%s::uuid[]), %s, %s, %s, %s, %s"
)


async def insert(connection: psycopg.AsyncConnection[Any], command: str, count: int = 1) -> list[Key]:
    """So many sandboxes of the size that the bare Jobs have too."""
    ids: list[UUID] = [uuid4() for _ in range(count)]
    await connection.execute(INSERT, [ids, command, TIMEOUT_SECONDS, CPU_MILLIS, MEMORY_MIB, DISK_MIB])
    return [Key(one, 1) for one in ids]


def jobs(count: int, command: str, options: JobOptions, *, gated: bool) -> list[dict[str, Any]]:
    """The manifests that the controller would send, for an installation that no controller looks after."""
    installation, made = str(uuid4()), []
    for _ in range(count):
        launch = replace(LAUNCH, key=Key(uuid4(), 1), command=command)
        job = job_manifest(launch, IMAGE, installation, options, START_SECONDS)
        if not gated:
            del job["spec"]["template"]["spec"]["schedulingGates"]
        made.append(job)
    return made


async def post_all(at: Place, made: Sequence[Json]) -> float:
    """A bare client in a process of its own POSTs all of these, as many at once as the controller would.

    Returns when it sent the first, in monotonic seconds.
    """
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    words = (at.namespace.kubeconfig, _paths(at.namespace), made, theirs)
    process = multiprocessing.get_context("spawn").Process(target=_post_all, args=words)
    process.start()
    while not ours.poll():
        if process.exitcode:
            raise RuntimeError("the bare client failed")
        await asyncio.sleep(0.02)
    began: float = ours.recv()
    await asyncio.to_thread(process.join)
    return began


def _post_all(kubeconfig: str, paths: Mapping[str, str], made: Sequence[Json], pipe: Connection) -> None:
    pipe.send(asyncio.run(_posted(kubeconfig, paths, made)))


async def _posted(kubeconfig: str, paths: Mapping[str, str], made: Sequence[Json]) -> float:
    turns = asyncio.Semaphore(KubernetesBackend.at_once)
    async with plain(kubeconfig, paths) as client:

        async def one(job: Json) -> None:
            async with turns:
                await client.post(job)

        began = time.monotonic()
        await asyncio.gather(*(one(job) for job in made))
        return began
