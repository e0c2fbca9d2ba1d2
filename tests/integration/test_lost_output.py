"""Output that could not be had is told with the outcome, which does not wait for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.backends.base import Backend
from controller.errors import TransientEngineError
from controller.protocol.model import Key, Listing, ObservedRun, Output, Phase
from tests.support.control import control, table
from tests.support.engines import Engine, make_engine
from tests.support.passing import Passing


@pytest.fixture(params=["memory", "process", "docker", "kubernetes"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    return make_engine(request.param, tmp_path)


class Pruned(Passing):
    """Somebody removes what has ended before its output is read."""

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """Too late."""
        await self.backend.delete(key, None)
        return await self.backend.output(key, run_uid, limit)


class Unread(Passing):
    """Never has an answer to a question for output."""

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """No answer."""
        raise TransientEngineError("the engine gave no answer in time")


class Removed(Passing):
    """Somebody removes what runs, before its end is seen."""

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """Removes what it sees running."""
        async for sight in self.backend.observe():
            yield sight
            for seen in sight.runs if isinstance(sight, Listing) else (sight,):
                if seen.phase is Phase.RUNNING:
                    await self.backend.delete(seen.key, None)


async def results(engine: Engine, url: str, backend: Backend, command: str, **config: float) -> dict[str, Any]:
    async with table(url) as asked, control(url, backend, config):
        sandbox = await asked.insert(command, image=engine.image, memory_mib=64, disk_mib=16)
        await asked.cleaned(sandbox)
        return (await asked.rows("select * from sandbox_results"))[0]


@pytest.mark.parametrize(("command", "state"), [("echo hi", "succeeded"), ("echo hi; exit 3", "failed")])
async def test_an_ended_run_that_is_removed_before_its_output_is_read_says_so(
    engine: Engine, database: str, command: str, state: str
) -> None:
    row = await results(engine, database, Pruned(engine.connect()), command)
    assert (row["state"], row["output"], row["output_truncated"]) == (state, None, True)
    assert "its output could not be had: " in row["message"]
    assert row["message"].startswith("the command exited with 3; " if state == "failed" else "its output")


async def test_output_that_no_try_can_read_is_told(engine: Engine, database: str) -> None:
    row = await results(engine, database, Unread(engine.connect()), "echo hi", output_patience=0.0)
    assert (row["state"], row["output"], row["output_truncated"]) == ("succeeded", None, True)
    assert row["message"] == "its output could not be had: the engine gave no answer in time"


REMOVED: dict[str, tuple[set[str], set[str | None]]] = {  # the states that it may end in, and the outputs
    "memory": ({"lost"}, {None}),
    "process": ({"lost"}, {None}),
    "docker": ({"failed", "lost"}, {None}),  # its end may be seen before its removal
    "kubernetes": ({"failed", "lost"}, {None, "hi\n"}),  # its log may be read while its pod terminates
}


async def test_a_run_that_is_removed_while_it_runs_says_so_if_it_has_no_output(engine: Engine, database: str) -> None:
    states, outputs = REMOVED[engine.name]
    row = await results(engine, database, Removed(engine.connect()), "echo hi; sleep 600")
    assert row["state"] in states
    assert row["output"] in outputs
    assert ("output" in row["message"]) is (row["output"] is None)
    assert row["output_truncated"] or row["output"] is not None
