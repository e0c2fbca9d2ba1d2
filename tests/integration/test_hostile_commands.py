"""Hostile and odd commands, each before a good one: all end with a true outcome, and the good ones succeed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.control import Table, control, table
from tests.support.engines import SHELL_IMAGE, Engine, make_engine

COMMANDS: dict[str, tuple[str, int | None, str]] = {  # command: state, exit code, reason
    "no-such-program": ("failed", 127, "NonZeroExit"),
    "/": ("failed", 126, "NonZeroExit"),
    "if": ("failed", 2, "NonZeroExit"),
    "'": ("failed", 2, "NonZeroExit"),
    "-x": ("failed", 127, "NonZeroExit"),
    "$(": ("failed", 2, "NonZeroExit"),
    "unset PATH HOME; cd /; exit 9": ("failed", 9, "NonZeroExit"),
    "kill -SEGV $$": ("failed", 139, "NonZeroExit"),
    "kill -TERM $$": ("failed", 143, "NonZeroExit"),
    "exit 255": ("failed", 255, "NonZeroExit"),
    "exec >&- 2>&-; exit 4": ("failed", 4, "NonZeroExit"),
    "(setsid sleep 300 &) ; exec sleep 300": ("timed_out", None, "DeadlineExceeded"),
    "trap '' TERM INT HUP; while :; do sleep 1; done": ("timed_out", None, "DeadlineExceeded"),
    "head -c 3000000 /dev/urandom": ("succeeded", 0, "Completed"),
    "head -c 3000000 /dev/zero": ("succeeded", 0, "Completed"),
    r"printf '\000\377\303\050\033]0;title\007\r'": ("succeeded", 0, "Completed"),
    'printf \'{"a":"\\\\u0000"}\'': ("succeeded", 0, "Completed"),
    "echo ünï 🐎 \u202e; printf '\\303'": ("succeeded", 0, "Completed"),
    "i=0; while [ $i -lt 200 ]; do mkdir -p d && cd d || exit 0; i=$((i + 1)); done": ("succeeded", 0, "Completed"),
    "mkdir a && touch a/b && chmod 000 a": ("succeeded", 0, "Completed"),
    "ln -s / root && ln -s root loop": ("succeeded", 0, "Completed"),
}
GOOD = "echo good"


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """The Docker engine, or the one that the test asks for."""
    return make_engine(getattr(request, "param", "docker"), tmp_path)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("engine", ["process", "docker"], indirect=True)
async def test_no_command_harms_the_controller_or_its_neighbours(engine: Engine, database: str) -> None:
    async with table(database) as asked, control(database, engine.connect()):
        rest = {"image": engine.image, "memory_mib": 128, "disk_mib": 16}
        bad, good = {}, []
        for command in COMMANDS:
            bad[command] = await asked.insert(
                command, timeout_seconds=2 if "300" in command or "trap" in command else 60, **rest
            )
            good.append(await asked.insert(GOOD, **rest))
        wrong = {}
        for command, sandbox in bad.items():
            row = await _ended(asked, sandbox)
            found = (row["state"], row["exit_code"], row["reason"])
            if found != COMMANDS[command]:
                wrong[command] = found
        assert not wrong
        for sandbox in good:
            row = await _ended(asked, sandbox)
            assert row["state"] == "succeeded", row
    async with table(database) as asked:
        outputs = await asked.rows("select output, command from sandbox_results join sandboxes using (id)")
        assert all(each["output"] == "good\n" for each in outputs if each["command"] == GOOD)
        assert all(len(each["output"].encode()) <= 1 << 20 for each in outputs)


async def _ended(asked: Table, sandbox: object) -> dict[str, object]:
    async with asyncio.timeout(120):
        while (row := await asked.row(sandbox))["cleaned_at"] is None:
            await asyncio.sleep(0.05)
    return row


async def test_an_image_that_does_not_exist_fails_its_own_row_alone(engine: Engine, database: str) -> None:
    async with table(database) as asked, control(database, engine.connect()):
        missing = await asked.insert(GOOD, image="localhost:5000/no/such:image")
        refused = await asked.insert(GOOD, image="UPPER/case")
        good = await asked.insert(GOOD, image=SHELL_IMAGE, memory_mib=64)
        assert (await _ended(asked, good))["state"] == "succeeded"
        row = await _ended(asked, missing)
        assert (row["state"], row["reason"]) == ("failed", "ImagePullFailed")
        assert row["message"]
        row = await _ended(asked, refused)
        assert (row["state"], row["reason"]) == ("failed", "InvalidRequest")


async def test_memory_beyond_the_limit_is_told_apart_from_a_plain_137(engine: Engine, database: str) -> None:
    async with table(database) as asked, control(database, engine.connect()):
        rest = {"image": SHELL_IMAGE, "memory_mib": 32, "disk_mib": 256}
        hungry = await asked.insert("tail /dev/zero", **rest)
        plain = await asked.insert("exit 137", **rest)
        row = await _ended(asked, hungry)
        assert (row["state"], row["reason"], row["exit_code"]) == ("failed", "OOMKilled", 137)
        row = await _ended(asked, plain)
        assert (row["state"], row["reason"], row["exit_code"]) == ("failed", "NonZeroExit", 137)
