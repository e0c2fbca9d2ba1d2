"""A run that starts only after the start deadline is ended, and told as that, whatever crashed in between."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from psycopg.rows import DictRow

from controller.backends.base import Backend
from controller.protocol.model import Key, Listing, ObservedRun, Phase
from tests.support.control import Table, control
from tests.support.engines import Engine, make_engine
from tests.support.passing import Passing


class Late(Passing):
    """An engine whose runs are not seen to run before the controller gives them up.

    `crash`: of the kill's end nothing is heard any more, as by a controller that died right after it.
    """

    def __init__(self, backend: Backend, *, crash: bool = False) -> None:
        super().__init__(backend)
        self._crash = crash
        self.killed, self.ran = asyncio.Event(), asyncio.Event()

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """What has started looks as if it had not, until there was a kill."""
        async for sight in self.backend.observe():
            if isinstance(sight, Listing):
                yield replace(sight, runs=tuple(map(self._shown, sight.runs)))
            else:
                yield self._shown(sight)

    def _shown(self, seen: ObservedRun) -> ObservedRun:
        if seen.phase not in (Phase.RUNNING, Phase.ENDED):
            return seen
        self.ran.set()
        if self.killed.is_set() and not self._crash:
            return seen
        return replace(seen, phase=Phase.STARTING, outcome=None, started_at=None, ended_at=None)

    async def kill(self, key: Key, run_uid: str) -> None:
        """Once it has started in truth."""
        async with asyncio.timeout(20):
            await self.ran.wait()
        await self.backend.kill(key, run_uid)
        self.killed.set()


@pytest.fixture(params=["memory", "process", "docker", "kubernetes"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return make_engine(request.param, tmp_path)


SETTINGS: dict[str, Any] = {"sandbox_start_deadline_seconds": 2, "sandbox_lease_seconds": 1}


async def insert(engine: Engine, asked: Table, command: str) -> Any:
    return await asked.insert(command, image=engine.image, memory_mib=64, disk_mib=16)


def told_as_late(row: DictRow) -> None:
    assert (row["state"], row["reason"], row["exit_code"]) == ("failed", "StartTimeout", None)
    assert row["message"].startswith("it started too late, past the start deadline, and was ended")


async def test_a_run_that_started_too_late_and_was_ended_for_it_says_so(
    engine: Engine, database: str, asked: Table
) -> None:
    async with control(database, Late(engine.connect()), **SETTINGS):
        told_as_late(await asked.cleaned(await insert(engine, asked, "sleep 600")))


async def test_a_controller_that_dies_right_after_that_kill_leaves_it_to_the_next_to_say(
    engine: Engine, database: str, asked: Table
) -> None:
    late = Late(engine.connect(), crash=True)
    async with control(database, late, {"stop": 0.1}, **SETTINGS):
        sandbox = await insert(engine, asked, "sleep 600")
        async with asyncio.timeout(30):
            await late.killed.wait()
    async with control(database, engine.connect(), **SETTINGS):
        told_as_late(await asked.cleaned(sandbox))


async def test_a_late_run_that_ended_by_itself_before_it_was_killed_keeps_its_result(
    engine: Engine, database: str, asked: Table
) -> None:
    async with control(database, Late(engine.connect()), **SETTINGS):
        row = await asked.cleaned(await insert(engine, asked, "echo hi; exit 3"))
    assert (row["state"], row["reason"], row["exit_code"]) == ("failed", "NonZeroExit", 3)
    assert (await asked.rows("select output from sandbox_results")) == [{"output": "hi\n"}]


def strike(engine: Engine, run_uid: str) -> None:
    """Kills a run as somebody else would."""
    match engine.name:
        case "docker":
            subprocess.run(["docker", "kill", run_uid], check=True, capture_output=True)
        case "process":
            mark = f"_SANDBOX_RUN={run_uid}".encode()
            for process in psutil.process_iter(["cmdline"]):
                if process.info["cmdline"] and process.info["cmdline"][0] == "/bin/sh":
                    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                    if mark in environment.split(b"\0"):
                        process.kill()


@pytest.mark.parametrize("engine", ["process", "docker"], indirect=True)
async def test_a_run_that_somebody_else_kills_while_it_runs_is_not_told_as_late(
    engine: Engine, database: str, asked: Table
) -> None:
    async with control(database, engine.connect()):
        sandbox = await insert(engine, asked, "sleep 600 & wait")
        row = await asked.until(sandbox, lambda row: row["state"] == "running")
    await asked.rows("update sandboxes set claimed_at = claimed_at - interval '1 hour'")
    async with control(database, engine.connect()):
        strike(engine, row["run_uid"])
        row = await asked.cleaned(sandbox)
    assert row["state"] == "failed"
    assert row["reason"] in ("Killed", "NonZeroExit")  # a process whose shell was killed has 128 and the signal
    assert "deadline" not in row["message"]
