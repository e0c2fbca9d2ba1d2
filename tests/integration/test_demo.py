"""`demo` shows what it promises, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DEADLINE = 90.0  # seconds


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary directory that the database's own user may reach, by which its processes are known."""
    path = Path(f"/tmp/demo-test-{os.getpid()}-{time.monotonic_ns()}")
    path.mkdir(mode=0o755)
    yield path
    for left in path.iterdir():
        left.unlink()
    path.rmdir()


def demo(place: Path, **settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "controller", "demo", "--backend", "process"]
    environment = os.environ | {"TMPDIR": str(place)} | settings
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes(place: Path) -> list[str]:
    """Every process that has to do with this place."""
    found = []
    for process in psutil.process_iter():
        try:
            about = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(place) in text for text in about):
            found.append(str(process))
    return found


def files(place: Path) -> set[str]:
    """What is left there, but for the lock of the Postgres wheel, which stays for the next."""
    return {path.name for path in place.iterdir()} - {".lockfile"}


def test_twelve_cases_are_as_expected_and_nothing_is_left(place: Path) -> None:
    process = demo(place)
    out, _ = process.communicate(timeout=DEADLINE)
    assert out.splitlines()[-1] == "demo: 12 as expected, 0 not", out
    assert process.returncode == 0
    assert processes(place) == []
    assert files(place) == set()


@pytest.mark.parametrize("line", ["demo: starting an embedded Postgres", "demo: starting a controller", "demo: exit 3"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(place: Path, line: str, number: int) -> None:
    process = demo(place)
    assert process.stdout is not None
    assert any(told.startswith(line) for told in process.stdout), line
    process.send_signal(number)
    out, _ = process.communicate(timeout=DEADLINE)
    assert out.splitlines()[-1] == "demo: interrupted; everything that it started is removed", out
    assert process.returncode == 130
    assert processes(place) == []
    assert files(place) == set()


def test_it_removes_everything_even_where_nobody_reads_on(place: Path) -> None:
    process = demo(place)
    assert process.stdout is not None
    assert any(told.startswith("demo: starting a controller") for told in process.stdout)
    process.stdout.close()
    process.wait(DEADLINE)
    assert processes(place) == []
    assert {name for name in files(place) if not name.endswith(".log")} == set()


def test_a_console_without_unicode_shows_it_all(place: Path) -> None:
    out, _ = demo(place, PYTHONIOENCODING="ascii").communicate(timeout=DEADLINE)
    assert out.splitlines()[-1] == "demo: 12 as expected, 0 not", out
    assert out.isascii()
    assert "Traceback" not in out


def test_a_reader_who_has_had_enough_changes_no_end(place: Path) -> None:
    words = f'"{sys.executable}" -m controller demo --backend process | head -1; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", words], env=os.environ | {"TMPDIR": str(place)}, capture_output=True, timeout=DEADLINE
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert processes(place) == []
    assert files(place) == set()
