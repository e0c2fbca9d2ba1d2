"""Two machines whose engines have one identity: no row becomes lost, and the second controller refuses to start."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from controller.backends.base import Backend
from controller.backends.docker.backend import DockerBackend
from controller.backends.process.backend import ProcessBackend
from controller.errors import BackendUnavailableError
from tests.support.control import Table, control, table
from tests.support.engines import SHELL_IMAGE, need_docker
from tests.support.memory_backend import MemoryBackend, MemoryEngine
from tests.support.memory_listings import CountedListings


class Unmarked(CountedListings):
    """An engine that holds no marks, as on Kubernetes, or as a controller of a schema version before 4 leaves none."""

    def __init__(self, engine: MemoryEngine) -> None:
        super().__init__(engine)
        self.marks = None  # type: ignore[assignment]


def twins() -> tuple[MemoryEngine, MemoryEngine]:
    identity = f"memory:{uuid4()}"
    return MemoryEngine(identity), MemoryEngine(identity)


async def refused(url: str, backend: Backend) -> str:
    with pytest.raises(BackendUnavailableError) as caught:
        async with control(url, backend):
            pass
    return str(caught.value)


async def test_the_second_of_two_machines_with_one_identity_refuses_to_start(database: str, asked: Table) -> None:
    one, other = twins()
    async with control(database, MemoryBackend(one, list_seconds=0.2)):
        sandbox = await asked.insert("sleep 1; exit 3")
        holder = (await asked.until(sandbox, lambda row: row["state"] == "running"))["claimed_by"]
        told = await refused(database, MemoryBackend(other))
        assert told == (
            f"the controller {holder} runs sandboxes on another machine under the identity of this engine, "
            f"{one.identity}; one of the two machines is a copy: give the copy another identity"
        )
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 3)
    assert not other.marks
    assert not await asked.rows("select 1 from sandbox_controllers")


async def test_of_two_machines_with_one_identity_that_start_at_once_one_refuses(database: str) -> None:
    done, outcomes = asyncio.Event(), []

    async def start(engine: MemoryEngine) -> None:
        try:
            async with control(database, MemoryBackend(engine)):
                outcomes.append("runs")
                await done.wait()
        except BackendUnavailableError as error:
            outcomes.append("refused" if "on another machine under the identity" in str(error) else str(error))

    starting = [asyncio.create_task(start(engine)) for engine in twins()]
    async with asyncio.timeout(20):
        while len(outcomes) < 2:
            await asyncio.sleep(0.02)
    done.set()
    await asyncio.gather(*starting)
    assert sorted(outcomes) == ["refused", "runs"]


async def test_a_machine_that_was_copied_with_the_marks_of_its_controllers_is_told_apart(
    database: str, asked: Table
) -> None:
    one, other = twins()
    async with control(database, MemoryBackend(one, list_seconds=0.2)):
        sandbox = await asked.insert("sleep 1; exit 3")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        other.marks |= one.marks
        assert "on another machine under the identity" in await refused(database, MemoryBackend(other))
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 3)


async def test_controllers_of_one_engine_start_beside_each_other(database: str, asked: Table) -> None:
    engine = MemoryEngine()
    async with control(database, MemoryBackend(engine)), control(database, MemoryBackend(engine)):
        assert len(engine.marks) == 2
        assert len(await asked.rows("select 1 from sandbox_controllers")) == 2
    assert not engine.marks


async def test_a_mark_that_somebody_removed_is_left_again_and_refuses_nobody(database: str) -> None:
    engine = MemoryEngine()
    async with control(database, MemoryBackend(engine)):
        engine.marks.clear()
        async with control(database, MemoryBackend(engine)):
            assert len(engine.marks) == 2


async def test_what_a_killed_controller_left_is_removed_by_the_next(database: str, asked: Table) -> None:
    engine = MemoryEngine(marks={"dead/1-abcdef"})
    await asked.rows("select sandbox_register('dead/1-abcdef', %s)", engine.identity)
    async with control(database, MemoryBackend(engine)):
        async with asyncio.timeout(20):
            while "dead/1-abcdef" in engine.marks:
                await asyncio.sleep(0.02)
        assert len(await asked.rows("select 1 from sandbox_controllers")) == 1


async def test_a_registration_that_was_lost_is_made_again(database: str, asked: Table) -> None:
    async with control(database, MemoryBackend()):
        await asked.rows("delete from sandbox_controllers")
        async with asyncio.timeout(20):
            while not await asked.rows("select 1 from sandbox_controllers"):
                await asyncio.sleep(0.02)


async def test_without_marks_neither_of_two_controllers_loses_the_others_rows(database: str, asked: Table) -> None:
    one, other = twins()
    async with control(database, Unmarked(one)), control(database, Unmarked(other)):
        sandboxes = [await asked.insert("sleep 3; exit 3") for _ in range(10)]
        rows = [await asked.cleaned(sandbox) for sandbox in sandboxes]
    assert {(row["state"], row["exit_code"]) for row in rows} == {("failed", 3)}
    assert sum(one.starts.values()) + sum(other.starts.values()) == 10


async def test_without_marks_an_orphan_that_is_not_here_is_left_until_its_run_must_be_over(
    database: str, asked: Table
) -> None:
    one, other = twins()
    async with control(database, Unmarked(one)):
        sandbox = await asked.insert("sleep 600", timeout_seconds=600)
        await asked.until(sandbox, lambda row: row["state"] == "running")
    more = "&" if "?" in database else "?"
    async with table(f"{database}{more}application_name=alive") as alive:
        await alive.rows("select sandbox_register('alive', %s)", one.identity)
        async with control(database, backend := Unmarked(other)):
            await backend.lists(8)  # one each 0.2 s, and the grace is 0.6 s
            assert (await asked.row(sandbox))["state"] == "running"
            await asked.rows("update sandboxes set started_at = now() - interval '1 hour'")
            row = await asked.cleaned(sandbox)
    assert (row["state"], row["reason"]) == ("lost", "Lost")


async def test_without_marks_the_machine_that_has_an_orphans_run_adopts_it(database: str, asked: Table) -> None:
    one, other = twins()
    async with control(database, Unmarked(one)):
        sandbox = await asked.insert("sleep 1; exit 3")
        await asked.until(sandbox, lambda row: row["state"] == "running")
    async with control(database, Unmarked(other)), control(database, Unmarked(one)):
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 3)


@asynccontextmanager
async def cloned_engine(identity: str) -> AsyncIterator[str]:
    """What another machine's Docker engine, of that identity, says of itself and of volumes; its address."""
    volumes: list[dict[str, Any]] = []

    async def info(request: web.Request) -> web.Response:
        limits = {"MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True}
        return web.json_response({"ID": identity, "Name": "clone", "DockerRootDir": "/data/docker", **limits})

    async def create(request: web.Request) -> web.Response:
        volumes.append(await request.json())
        return web.json_response(volumes[-1], status=201)

    async def listed(request: web.Request) -> web.Response:
        return web.json_response({"Volumes": volumes, "Warnings": None})

    async def remove(request: web.Request) -> web.Response:
        volumes[:] = [volume for volume in volumes if volume["Name"] != request.match_info["name"]]
        return web.Response(status=204)

    app = web.Application()
    app.router.add_get("/{version:.*}info", info)
    app.router.add_post("/{version:.*}volumes/create", create)
    app.router.add_get("/{version:.*}volumes", listed)
    app.router.add_delete("/{version:.*}volumes/{name}", remove)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield "tcp://{}:{}".format(*runner.addresses[0])
        assert volumes == []
    finally:
        await runner.cleanup()


async def test_two_docker_engines_with_one_identity_are_told_apart(database: str, asked: Table) -> None:
    need_docker()
    async with control(database, DockerBackend(SHELL_IMAGE, list_seconds=0.5)):
        sandbox = await asked.insert("sleep 2; exit 3", memory_mib=64, disk_mib=16)
        row = await asked.until(sandbox, lambda row: row["state"] == "running")
        async with cloned_engine(row["engine"].removeprefix("docker:")) as url:
            told = await refused(database, DockerBackend(SHELL_IMAGE, url))
        assert f"the controller {row['claimed_by']} runs sandboxes on another machine" in told
        assert "remove /data/docker/engine-id and /etc/docker/key.json" in told
        row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 3)


async def test_controllers_of_one_docker_engine_start_beside_each_other(database: str, asked: Table) -> None:
    need_docker()
    async with control(database, DockerBackend(SHELL_IMAGE)), control(database, DockerBackend(SHELL_IMAGE)):
        assert len(await asked.rows("select 1 from sandbox_controllers")) == 2


async def test_two_work_directories_with_one_engine_file_are_told_apart(
    database: str, tmp_path: Path, asked: Table
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    other.mkdir()
    async with control(database, ProcessBackend(one)):
        shutil.copy(one / "engine", other / "engine")
        sandbox = await asked.insert("sleep 1; exit 3")
        await asked.until(sandbox, lambda row: row["state"] == "running")
        told = await refused(database, ProcessBackend(other))
        assert told.endswith(f"on the copy, with nothing running there, remove {other / 'engine'}")
        (other / "engine").unlink()
        async with control(database, ProcessBackend(other)):  # as it was told
            row = await asked.cleaned(sandbox)
    assert (row["state"], row["exit_code"]) == ("failed", 3)
    assert not list((other / "controllers").rglob("*-*/*"))
