"""A sandbox whose image has yet to be pulled holds nothing that another could use, and is told why it waits."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from controller.backends.docker.backend import DockerBackend
from controller.protocol.model import Key
from tests.support.control import Table, control, table
from tests.support.engines import SHELL_IMAGE, need_docker
from tests.support.memory_backend import Fault, MemoryBackend, MemoryEngine
from tests.support.registry import PASSWORD, USER, registry_with_login, silent_registry


def with_table(url: str, test: Callable[[Table], Awaitable[None]]) -> None:
    async def go() -> None:
        async with table(url) as asked:
            await test(asked)

    asyncio.run(go())


def put_back(row: dict[str, Any]) -> bool:
    return row["state"] == "queued" and row["retry_at"] is not None


class Away:
    """A fake engine that has not got the image of some sandboxes."""

    def __init__(self, *sandboxes: UUID) -> None:
        self.engine, self.away = MemoryEngine(), set(sandboxes)
        self.backend = MemoryBackend(self.engine, self._fault, 0.2)

    def _fault(self, verb: str, key: Key) -> Fault | None:
        return Fault.AWAY if verb == "create" and key.sandbox_id in self.away else None


def test_a_sandbox_whose_image_is_being_pulled_holds_no_place(database: str) -> None:
    async def test(asked: Table) -> None:
        waits, other = uuid4(), uuid4()
        fake = Away(waits)
        fake.engine.pulled = asyncio.get_running_loop().create_future()
        async with control(database, fake.backend, sandbox_max_running=1):
            await asked.insert(id=waits)
            row = await asked.until(waits, put_back)
            assert (row["claimed_by"], row["engine"], row["lease_until"], row["attempt"]) == (None, None, None, 1)
            assert row["waiting"] == "the image is being pulled"
            await asked.insert(id=other)
            assert (await asked.cleaned(other))["exit_code"] == 3
            fake.away.clear()
            fake.engine.pulled.set_result(None)
            began = time.monotonic()
            ended = await asked.cleaned(waits)
            assert time.monotonic() - began < 5  # at once, not after the minute that it was put back for
        assert (ended["exit_code"], ended["attempt"], ended["claimed_at"]) == (3, 1, row["claimed_at"])
        assert fake.engine.starts == {Key(other, 1): 1, Key(waits, 1): 1}

    with_table(database, test)


def test_a_sandbox_that_waits_for_its_image_is_cancelled_at_once(database: str) -> None:
    async def test(asked: Table) -> None:
        waits = uuid4()
        fake = Away(waits)
        fake.engine.pulled = asyncio.get_running_loop().create_future()
        async with control(database, fake.backend):
            await asked.insert(id=waits)
            await asked.until(waits, put_back)
            await asked.cancel(waits)
            row = await asked.cleaned(waits)
            assert (row["state"], row["reason"]) == ("cancelled", "Cancelled")
            fake.engine.pulled.set_result(None)
            await asyncio.sleep(0)  # what is over wakes nothing
        assert not fake.engine.starts

    with_table(database, test)


def test_the_start_deadline_runs_on_while_an_image_is_away(database: str) -> None:
    async def test(asked: Table) -> None:
        waits = uuid4()
        fake = Away(waits)
        fake.engine.pulled = asyncio.get_running_loop().create_future()
        async with control(database, fake.backend, sandbox_start_deadline_seconds=1):
            await asked.insert(id=waits)
            row = await asked.cleaned(waits)
        assert (row["state"], row["reason"], row["run_uid"]) == ("failed", "StartTimeout", None)
        assert row["message"] == "not started within the start deadline: the image is being pulled"

    with_table(database, test)


def test_the_next_controller_goes_on_with_what_waits_for_an_image(database: str) -> None:
    async def test(asked: Table) -> None:
        waits = uuid4()
        fake = Away(waits)  # no pull under way: tried again after a pause
        async with control(database, fake.backend):
            await asked.insert(id=waits)
            await asked.until(waits, put_back)
        await asked.rows("update sandboxes set retry_at = now()")
        fake.away.clear()
        async with control(database, fake.backend):
            assert (await asked.cleaned(waits))["exit_code"] == 3

    with_table(database, test)


# On a Docker engine


@pytest.fixture
def docker() -> Callable[..., Any]:
    """A controller on the Docker engine."""
    need_docker()

    def at_work(url: str, **settings: Any) -> Any:
        return control(url, DockerBackend(SHELL_IMAGE, list_seconds=0.5), **settings)

    return at_work


async def took(asked: Table) -> float:
    """Seconds from a request to its end, of a command on an image that is there."""
    began = time.monotonic()
    row = await asked.until(await asked.insert("exit 3", memory_mib=64), lambda row: row["finished_at"] is not None)
    assert row["exit_code"] == 3
    return time.monotonic() - began


@pytest.mark.parametrize("images", [16, 200])
def test_rows_on_a_silent_registry_do_not_hold_up_an_honest_one(
    database: str, docker: Callable[..., Any], images: int
) -> None:
    async def test(asked: Table) -> None:
        with silent_registry() as host:
            async with docker(database, sandbox_max_running=16):
                alone = await took(asked)
                silent = [await asked.insert("true", image=f"{host}/none:{number}") for number in range(images)]
                await asked.until(silent[-1], put_back)
                assert await took(asked) < max(2.0, 3 * alone)  # 2 s, on a machine that is not busy with other tests
                waiting = {(await asked.row(one))["waiting"] for one in silent}
                assert all("is being pulled" in one or "waits for other pulls" in one for one in waiting)
                await asked.rows("select sandbox_cancel(id) from sandboxes where finished_at is null")
                for one in silent:
                    await asked.cleaned(one)

    with_table(database, test)


# A registry with a login


@dataclass(frozen=True)
class Private:
    """A registry with a login, an image on it that the engine has not got, and the logins of this process."""

    host: str
    image: str
    logins: Path

    def log_in(self, password: str = PASSWORD, host: str | None = None) -> None:
        """As `docker login` leaves it."""
        entry = {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}
        (self.logins / "config.json").write_text(json.dumps({"auths": {host or self.host: entry}}))


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Private]:
    need_docker()
    (tmp_path / "logins").mkdir()
    with registry_with_login(tmp_path) as host:
        made = Private(host, f"{host}/team/box:1", tmp_path / "logins")
        monkeypatch.setenv("DOCKER_CONFIG", str(made.logins))
        made.log_in()
        for words in (["tag", SHELL_IMAGE, made.image], ["push", "-q", made.image], ["rmi", made.image]):
            subprocess.run(["docker", *words], check=True, capture_output=True)
        (made.logins / "config.json").unlink()
        yield made
        subprocess.run(["docker", "rmi", "-f", made.image], capture_output=True, check=False)


def test_a_login_of_this_host_is_used_for_a_pull(
    database: str, docker: Callable[..., Any], private: Private, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(asked: Table) -> None:
        async with docker(database):
            private.log_in()
            row = await asked.cleaned(await asked.insert("exit 7", image=private.image, memory_mib=64))
            assert (row["reason"], row["exit_code"]) == ("NonZeroExit", 7)
        told = json.dumps(await asked.rows("select * from sandboxes, sandbox_events, sandbox_attempts"), default=str)
        assert PASSWORD not in told + caplog.text
        assert base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in told + caplog.text

    with_table(database, test)


def test_a_pull_without_a_login_or_with_a_wrong_one_fails_at_once_and_a_later_login_counts(
    database: str, docker: Callable[..., Any], private: Private
) -> None:
    async def test(asked: Table) -> None:
        async with docker(database):

            async def fails(image: str, words: str) -> None:
                began = time.monotonic()
                row = await asked.cleaned(await asked.insert("true", image=image, memory_mib=64))
                assert (row["state"], row["reason"]) == ("failed", "ImagePullFailed"), row
                assert words in row["message"]
                assert time.monotonic() - began < 10

            await fails(private.image, "no basic auth credentials")
            private.log_in("wrong")
            await fails(private.image, "unauthorized: authentication required")
            private.log_in(host="other.example")  # not this registry's
            await fails(private.image, "no basic auth credentials")
            (private.logins / "config.json").write_text("{broken")
            await fails(private.image, "is not JSON")
            private.log_in()
            await fails(f"{private.host}/team/box:2", "manifest unknown")
            await fails(f"{private.host}/team/none:1", "manifest unknown")
            row = await asked.cleaned(await asked.insert("exit 7", image=private.image, memory_mib=64))
            assert row["exit_code"] == 7

    with_table(database, test)


def test_another_tenants_silent_images_do_not_hold_up_a_pull(
    database: str, docker: Callable[..., Any], private: Private
) -> None:
    async def test(asked: Table) -> None:
        private.log_in()
        with silent_registry() as host:
            async with docker(database):
                for number in range(40):
                    await asked.insert("true", image=f"{host}/none:{number}", tenant="other")
                began = time.monotonic()
                row = await asked.cleaned(await asked.insert("exit 7", image=private.image, memory_mib=64))
                assert row["exit_code"] == 7
                assert time.monotonic() - began < 10
                await asked.rows("select sandbox_cancel(id) from sandboxes where finished_at is null")
                for left in await asked.rows("select id from sandboxes"):
                    await asked.cleaned(left["id"])

    with_table(database, test)
