"""What ends before a stack's objects go, on a real Docker engine: what is refused, waited for, and told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pulumi
import pytest

from infra.ending.docker import DockerEnd
from infra.ending.drain import Ending, Patience
from infra.errors import EndRefusedError
from tests.support.engines import SHELL_IMAGE, need_docker

ENDING = Ending("it", 20, protect=False)


def test_a_destroy_that_does_not_know_any_more_what_drains_is_refused_with_what_to_type() -> None:
    need_docker()

    async def end() -> None:
        loop = asyncio.get_running_loop()
        value, known = loop.create_future(), loop.create_future()
        value.set_result(None)
        known.set_result(False)
        await DockerEnd(f"it-{uuid4().hex[:8]}", ENDING, pulumi.Output(set(), value, known)).drain()

    words = "is made of .an `up` was interrupted.. Run `pulumi up --refresh --run-program --stack it`"
    with pytest.raises(EndRefusedError, match=words):
        asyncio.run(end())


def test_a_mute_drain_on_an_engine_is_reported_while_it_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    need_docker()
    name, script = f"it-{uuid4().hex[:8]}", "sleep 3; echo 'drain: nothing is left'"

    async def end() -> None:
        body = pulumi.Output.from_input({"Image": SHELL_IMAGE, "Cmd": ["sh", "-c", script], "Tty": True})
        await DockerEnd(name, ENDING, body, Patience(report=1)).drain()

    asyncio.run(end())
    told = capfd.readouterr()
    assert f"waiting for container {name}-drain to end" in told.out + told.err
    assert "at most 80 s): it has written nothing yet" in told.out + told.err


def test_a_socket_that_is_not_there_is_named_and_nobody_makes_a_directory_of_it(tmp_path: Path) -> None:
    need_docker()
    nowhere = tmp_path / "nowhere.sock"
    mount = {"Type": "bind", "Source": str(nowhere), "Target": "/var/run/docker.sock"}

    async def end() -> None:
        body = pulumi.Output.from_input({"Image": SHELL_IMAGE, "HostConfig": {"Mounts": [mount]}})
        await DockerEnd(f"it-{uuid4().hex[:8]}", ENDING, body).drain()

    with pytest.raises(EndRefusedError, match=f"bind source path does not exist: {nowhere}"):
        asyncio.run(end())
    assert not nowhere.exists()
