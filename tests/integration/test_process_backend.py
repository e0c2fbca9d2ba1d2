"""What the process backend promises beyond what every backend does."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from controller.backends.process import run_files
from controller.backends.process import runs as process_runs
from controller.backends.process.backend import ProcessBackend
from controller.errors import BackendUnavailableError, RequestRejectedError, RunNotFoundError, TransientEngineError
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Phase, Reason, State

DEADLINE = 20.0
INSTALLATION = uuid4()


def launch(command: str, *, timeout: int = 30, memory_mib: int = 1024, env: dict[str, str] | None = None) -> Launch:
    return Launch(Key(uuid4(), 1), command, timeout, env=env or {}, memory_mib=memory_mib)


@asynccontextmanager
async def opened(
    work_dir: Path, *, output_bytes: int = 1000, list_seconds: float = 1.0
) -> AsyncIterator[ProcessBackend]:
    """A backend that is open; whatever it started is deleted at the end."""
    backend = ProcessBackend(work_dir, output_bytes=output_bytes, list_seconds=list_seconds)
    await backend.open(INSTALLATION)
    try:
        yield backend
    finally:
        for run in (await listing(backend)).runs:
            await backend.delete(run.key, None)
        await backend.close()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[ProcessBackend]:
    """A backend that is open, on the test's directory."""
    async with opened(tmp_path) as backend:
        yield backend


async def listing(backend: ProcessBackend) -> Listing:
    """The first whole listing of a new watch."""
    watch = backend.observe()
    try:
        async for sight in watch:
            if isinstance(sight, Listing):
                return sight
    finally:
        await watch.aclose()  # type: ignore[attr-defined]
    raise AssertionError


async def reaches(backend: ProcessBackend, key: Key, phase: Phase) -> ObservedRun:
    """Watches until a run is in that phase."""
    watch = backend.observe()
    async with asyncio.timeout(DEADLINE):
        async for sight in watch:
            for seen in sight.runs if isinstance(sight, Listing) else (sight,):
                if seen.key == key and seen.phase is phase:
                    await watch.aclose()  # type: ignore[attr-defined]
                    return seen
    raise AssertionError


async def until(true: Callable[[], bool]) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(DEADLINE):
        while not true():
            await asyncio.sleep(0.005)


async def start(backend: ProcessBackend, asked: Launch) -> ObservedRun:
    made = await backend.create(asked, look=False)
    assert made is not None
    await backend.release(asked.key, made.run_uid)
    return made


async def run(backend: ProcessBackend, asked: Launch) -> ObservedRun:
    await start(backend, asked)
    return await reaches(backend, asked.key, Phase.ENDED)


def directory_of(work_dir: Path, key: Key) -> Path:
    return work_dir / "runs" / str(INSTALLATION) / key.name


async def test_all_of_it_is_closed_to_other_users_and_gone_after_a_delete(
    tmp_path: Path, backend: ProcessBackend
) -> None:
    asked = launch("true")
    ended = await run(backend, asked)
    for directory in (directory_of(tmp_path, asked.key), tmp_path / "wake", tmp_path / "runs"):
        assert stat.S_IMODE(directory.stat().st_mode) & 0o077 == 0 or directory.name == "runs"
    await backend.delete(asked.key, ended.run_uid)
    for directory in (directory_of(tmp_path, asked.key).parent, tmp_path / "trash", tmp_path / "new"):
        assert not os.listdir(directory)


async def test_the_identity_is_the_hosts_not_the_controllers(tmp_path: Path) -> None:
    async def identities() -> set[str]:
        backends = [ProcessBackend(tmp_path / "deep" / "work") for _ in range(8)]
        found = set(await asyncio.gather(*(backend.open(uuid4()) for backend in backends)))
        for backend in backends:
            await backend.close()
        return found

    first = await identities()
    assert len(first) == 1
    assert first == await identities()


async def test_a_work_directory_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backend = ProcessBackend(tmp_path / "file" / "work")
    try:
        with pytest.raises(BackendUnavailableError, match="SANDBOX_WORK_DIR"):
            await backend.open(uuid4())
    finally:
        await backend.close()


async def test_a_ping_tells_a_work_directory_that_is_gone_or_another_one(tmp_path: Path) -> None:
    backend, work = ProcessBackend(tmp_path / "work"), tmp_path / "work"
    await backend.open(INSTALLATION)
    await backend.ping()
    work.rename(tmp_path / "aside")
    with pytest.raises(BackendUnavailableError, match=r"SANDBOX_WORK_DIR = .* cannot be used"):
        await backend.ping()
    assert not work.exists()
    other = ProcessBackend(work)
    await other.open(INSTALLATION)
    await other.close()
    with pytest.raises(BackendUnavailableError, match="not the directory that this controller started with"):
        await backend.ping()
    await backend.close()


async def test_a_storm_of_releases_by_two_controllers_starts_it_once(tmp_path: Path, backend: ProcessBackend) -> None:
    other = ProcessBackend(tmp_path)
    await other.open(INSTALLATION)
    asked = launch(f"echo ran >> {tmp_path}/marker; exit 5")
    made = await asyncio.gather(*(one.create(asked, look=False) for one in [backend, other] * 5))
    uids = {seen.run_uid for seen in made if seen is not None}
    assert len(uids) == 1
    run_uid = uids.pop()
    await asyncio.gather(*(one.release(asked.key, run_uid) for one in [backend, other] * 10))
    ended = await reaches(backend, asked.key, Phase.ENDED)
    assert ended.outcome is not None
    assert ended.outcome.exit_code == 5
    await until(lambda: not supervisors(run_uid))
    assert (tmp_path / "marker").read_text() == "ran\n"
    await other.close()


def supervisors(run_uid: str) -> list[int]:
    """The supervisors of a run, those that come too late too."""
    found = []
    for process in psutil.process_iter():
        try:
            if run_uid in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


CONTROLLER = """
import asyncio, sys
from pathlib import Path
from uuid import UUID
from controller.backends.process.backend import ProcessBackend
from controller.protocol.model import Key, Launch

async def main():
    backend = ProcessBackend(Path(sys.argv[1]))
    await backend.open(UUID(sys.argv[2]))
    key = Key(UUID(sys.argv[3]), 1)
    made = await backend.create(Launch(key, sys.argv[4], 30), look=False)
    await backend.release(key, made.run_uid)
    print("released", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def leave_running(work_dir: Path, key: Key, command: str) -> None:
    """Starts a run by a controller that is killed right after it."""
    arguments = [str(work_dir), str(INSTALLATION), str(key.sandbox_id), command]
    environment = {**os.environ, "PYTHONPATH": process_runs.MODULES}
    with subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *arguments], stdout=subprocess.PIPE, env=environment, start_new_session=True
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"released\n"
        os.killpg(controller.pid, signal.SIGKILL)


async def test_a_run_outlives_its_killed_controller_and_the_next_one_reads_its_end(tmp_path: Path) -> None:
    key = Key(uuid4(), 1)
    leave_running(tmp_path, key, f"echo before; until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo after; exit 6")
    async with opened(tmp_path) as backend:
        running = await reaches(backend, key, Phase.RUNNING)
        (tmp_path / "go").touch()
        ended = await reaches(backend, key, Phase.ENDED)
        assert ended.run_uid == running.run_uid
        assert ended.outcome is not None
        assert ended.outcome.exit_code == 6
        assert (await backend.output(key, ended.run_uid, 100)).tail == b"before\nafter\n"


async def told(watch: AsyncIterator[Listing | ObservedRun], key: Key) -> list[Listing | ObservedRun]:
    """What a watch says until that run has ended."""
    said: list[Listing | ObservedRun] = []
    async with asyncio.timeout(DEADLINE):
        async for sight in watch:
            said.append(sight)
            for seen in sight.runs if isinstance(sight, Listing) else (sight,):
                if (seen.key, seen.phase) == (key, Phase.ENDED):
                    return said
    raise AssertionError


async def test_the_end_is_told_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, list_seconds=3600.0) as backend:
        watch = backend.observe()
        assert isinstance(await anext(watch), Listing)
        asked = launch("true")
        await start(backend, asked)
        assert all(isinstance(sight, ObservedRun) for sight in await told(watch, asked.key))
        await watch.aclose()  # type: ignore[attr-defined]


async def test_polling_alone_suffices(tmp_path: Path) -> None:
    async with opened(tmp_path, list_seconds=0.05) as backend:
        watch = backend.observe()
        await anext(watch)
        for wakeup in (tmp_path / "wake").iterdir():
            wakeup.unlink()
        asked = launch("true")
        await start(backend, asked)
        assert all(isinstance(sight, Listing) for sight in await told(watch, asked.key))
        await watch.aclose()  # type: ignore[attr-defined]


async def test_the_fifo_of_a_dead_controller_is_removed(tmp_path: Path, backend: ProcessBackend) -> None:
    os.mkfifo(tmp_path / "wake" / "dead")
    await run(backend, launch("true"))
    assert not (tmp_path / "wake" / "dead").exists()


async def test_a_very_long_work_directory_works(tmp_path: Path) -> None:
    async with opened(tmp_path.joinpath(*["x" * 100] * 5)) as backend:
        ended = await run(backend, launch("pwd"))
        assert ended.outcome is not None
        assert ended.outcome.exit_code == 0


async def test_defaults_of_the_environment_are_the_runs_own(tmp_path: Path, backend: ProcessBackend) -> None:
    asked = launch("env | sort; umask >/dev/null; ls -A $HOME $TMPDIR")
    ended = await run(backend, asked)
    lines = (await backend.output(asked.key, ended.run_uid, 9000)).tail.decode().splitlines()
    directory = directory_of(tmp_path, asked.key)
    names = {line.partition("=")[0]: line.partition("=")[2] for line in lines if "=" in line}
    assert names.keys() == {"HOME", "PATH", "PWD", "TMPDIR", run_files.MARKER}
    assert (names["HOME"], names["TMPDIR"]) == (f"{directory}/work", f"{directory}/tmp")


async def test_bytes_that_are_not_unicode_arrive_as_they_are(backend: ProcessBackend) -> None:
    asked = launch("printf '\udcff%s' \"$X\"", env={"X": "\udcfe\n"})
    ended = await run(backend, asked)
    assert (await backend.output(asked.key, ended.run_uid, 100)).tail == b"\xff\xfe\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 255", 255), ("/nowhere", 127), ("kill -9 $$", 137), ("kill -SEGV $$", 139), ("(", 2)],
)
async def test_exit_codes_are_the_shells(command: str, code: int, backend: ProcessBackend) -> None:
    ended = await run(backend, launch(command))
    assert ended.outcome is not None
    assert ended.outcome.exit_code == code
    assert ended.outcome.reason is (Reason.COMPLETED if code == 0 else Reason.NON_ZERO_EXIT)


async def test_signals_ignored_by_the_controller_work_in_the_command(backend: ProcessBackend) -> None:
    asked = launch(
        f"{sys.executable} -c 'import signal as s; print(s.getsignal(s.SIGHUP)); exit(s.SIG_DFL)'; "
        "yes | head -1; kill -HUP $$"
    )
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ended = await run(backend, asked)
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert ended.outcome is not None
    assert ended.outcome.exit_code == 129
    assert b"Broken pipe" not in (await backend.output(asked.key, ended.run_uid, 1000)).tail


async def test_no_descriptor_and_no_terminal_of_the_controller_reaches_the_command(
    tmp_path: Path, backend: ProcessBackend
) -> None:
    leaked = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leaked, True)
    asked = launch("ls -l /proc/$$/fd | awk 'NR > 1 {print $9}'; cat; ps -o sid= -p $$ | tr -d ' '; echo $$")
    ended = await run(backend, asked)
    os.close(leaked)
    *descriptors, session, own = (await backend.output(asked.key, ended.run_uid, 1000)).tail.split()
    assert set(descriptors) <= {b"0", b"1", b"2", b"3"}  # dash may hold one more
    assert session == own


async def test_what_the_kernel_refuses_to_execute_failed_to_start(backend: ProcessBackend) -> None:
    ended = await run(backend, launch("true", env={"X": "x" * 200_000}))
    assert ended.outcome is not None
    assert ended.outcome.reason is Reason.START_FAILED
    assert "Argument list too long" in (ended.outcome.message or "")


async def test_memory_is_limited_and_the_smallest_limit_runs_a_shell(backend: ProcessBackend) -> None:
    asked = launch("ulimit -d; ulimit -c", memory_mib=16)
    ended = await run(backend, asked)
    assert (await backend.output(asked.key, ended.run_uid, 100)).tail == b"16384\n0\n"
    greedy = launch(f"{sys.executable} -c 'bytearray(200 << 20)'", memory_mib=100)
    ended = await run(backend, greedy)
    assert ended.outcome is not None
    assert ended.outcome.exit_code == 1
    assert b"MemoryError" in (await backend.output(greedy.key, ended.run_uid, 1000)).tail


async def test_a_timeout_leaves_its_evidence_and_ends_those_who_left_the_group(
    tmp_path: Path, backend: ProcessBackend
) -> None:
    asked = launch(f"trap 'echo term; exit 0' TERM; setsid sleep 30 & echo $! > {tmp_path}/pid; wait", timeout=1)
    ended = await run(backend, asked)
    assert ended.outcome is not None
    assert (ended.outcome.state, ended.outcome.exit_code) == (State.TIMED_OUT, None)
    assert (directory_of(tmp_path, asked.key) / run_files.TIMEOUT).exists()
    assert (await backend.output(asked.key, ended.run_uid, 100)).tail == b"term\n"
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


async def test_killing_an_inert_run_makes_it_one_that_never_starts(tmp_path: Path, backend: ProcessBackend) -> None:
    asked = launch(f"touch {tmp_path}/marker")
    made = await backend.create(asked, look=False)
    assert made is not None
    await backend.kill(asked.key, "0" * 32)
    assert (await reaches(backend, asked.key, Phase.INERT)).run_uid == made.run_uid
    await backend.kill(asked.key, made.run_uid)
    await backend.release(asked.key, made.run_uid)
    await reaches(backend, asked.key, Phase.NEVER_STARTED)
    assert not (tmp_path / "marker").exists()


async def test_output_can_be_read_while_the_command_runs(backend: ProcessBackend) -> None:
    asked = launch("echo early; sleep 30")
    made = await start(backend, asked)
    async with asyncio.timeout(DEADLINE):
        while (await backend.output(asked.key, made.run_uid, 100)).tail != b"early\n":
            await asyncio.sleep(0.01)


async def test_a_gigabyte_of_output_takes_two_segments_of_disk_and_keeps_the_end(tmp_path: Path) -> None:
    async with opened(tmp_path, output_bytes=100000) as backend:
        asked = launch("head -c 1073741824 /dev/zero; printf end")
        await start(backend, asked)
        directory, most = directory_of(tmp_path, asked.key), 0
        ended = asyncio.create_task(reaches(backend, asked.key, Phase.ENDED))
        while not ended.done():
            most = max(most, used(directory))
            await asyncio.sleep(0.01)
        output = await backend.output(asked.key, (await ended).run_uid, 100_000)
        assert output.tail == bytes(99_997) + b"end"
        assert output.truncated
        assert most <= 2 * 100_000 + 10_000


def used(directory: Path) -> int:
    """The bytes in a run's own files."""
    total = 0
    for entry in os.scandir(directory):
        try:
            total += entry.stat().st_size if entry.is_file() else 0
        except FileNotFoundError:
            continue
    return total


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 1 MiB."""
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_a_full_disk_loses_output_and_nothing_else(small_disk: Path) -> None:
    async with opened(small_disk, output_bytes=4 << 20) as backend:
        kept = "until grep -aqs first ../output*; do sleep 0.1; done"
        asked = launch(f"echo first; {kept}; cat /dev/zero > fill; head -c 5000000 /dev/zero; exit 3")
        ended = await run(backend, asked)
        assert ended.outcome is not None
        assert ended.outcome.exit_code == 3
        output = await backend.output(asked.key, ended.run_uid, 4 << 20)
        assert output.tail.startswith(b"first")
        assert output.truncated
        with pytest.raises(TransientEngineError):
            await backend.create(launch("x" * 60_000), look=False)


async def test_a_tree_that_resists_is_removed(tmp_path: Path, backend: ProcessBackend) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    deep = (
        "import os\n"
        "for i in range(20000): open(f'f{i}', 'w').close()\n"
        "for i in range(3000): os.mkdir('d' * 100); os.chdir('d' * 100)\n"
    )
    command = (
        f'ln -s {tmp_path}/outside link; {sys.executable} -c "$DEEP"; mkdir -p a/b/c; touch a/b/c/file; '
        "mkfifo fifo; chmod 000 a/b/c a/b a . ; chmod 000 .."
    )
    asked = launch(command, env={"DEEP": deep})
    ended = await run(backend, asked)
    longest, last = 0.0, time.monotonic()
    deleted = asyncio.create_task(backend.delete(asked.key, ended.run_uid))
    while not deleted.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    await deleted
    assert not os.listdir(tmp_path / "trash")
    assert (tmp_path / "outside" / "kept").exists()
    assert longest < 0.5


async def test_a_listing_outlives_garbage_and_a_create_replaces_it(tmp_path: Path, backend: ProcessBackend) -> None:
    asked = [launch("exit 7") for _ in range(5)]
    empty, half, file, link, loop = (directory_of(tmp_path, one.key) for one in asked)
    empty.mkdir()
    half.mkdir()
    (half / run_files.INERT).write_text("nonsense")
    file.touch()
    link.symlink_to("/")
    loop.symlink_to(loop)
    (empty.parent / "stranger").mkdir()
    assert (await listing(backend)).runs == ()
    for one in asked:
        made = await backend.create(one, look=True)
        assert made is not None
        assert made.phase is Phase.INERT
    assert len((await listing(backend)).runs) == 5


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EMFILE, errno.ENOMEM, errno.ENOSPC])
async def test_a_host_without_room_says_not_now_and_can_be_asked_again(
    monkeypatch: pytest.MonkeyPatch, code: int, backend: ProcessBackend
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    asked = launch("exit 7")
    made = await backend.create(asked, look=False)
    assert made is not None
    with monkeypatch.context() as patched:
        patched.setattr(process_runs, "spawn_supervisor", refuse)
        with pytest.raises(TransientEngineError, match=os.strerror(code)):
            await backend.release(asked.key, made.run_uid)
    await backend.release(asked.key, made.run_uid)
    assert (await reaches(backend, asked.key, Phase.ENDED)).outcome is not None


async def test_bad_requests_are_refused_and_strangers_vanished(backend: ProcessBackend) -> None:
    with pytest.raises(RequestRejectedError):
        await backend.create(launch("a\0b"), look=False)
    asked = launch("true")
    with pytest.raises(RunNotFoundError):
        await backend.release(asked.key, "0" * 32)
    with pytest.raises(RunNotFoundError):
        await backend.output(asked.key, "0" * 32, 10)
    await backend.kill(asked.key, "0" * 32)
    await backend.delete(asked.key, "0" * 32)
    made = await backend.create(asked, look=False)
    assert made is not None
    await backend.delete(asked.key, "0" * 32)
    assert [seen.run_uid for seen in (await listing(backend)).runs] == [made.run_uid]


async def test_no_zombie_and_no_descriptor_is_left_by_many_runs(backend: ProcessBackend) -> None:
    own = psutil.Process()
    others = own.children()
    await run(backend, launch("true"))
    before = own.num_fds()
    asked = [launch("true") for _ in range(20)]
    await asyncio.gather(*(run(backend, one) for one in asked))
    await asyncio.gather(*(backend.delete(one.key, None) for one in asked))

    async def reaped() -> bool:
        await listing(backend)
        return own.children() == others

    async with asyncio.timeout(DEADLINE):
        while not await reaped():
            await asyncio.sleep(0.01)
    assert own.num_fds() <= before


async def test_trash_of_a_dead_controller_is_taken_out_by_the_next(tmp_path: Path, backend: ProcessBackend) -> None:
    (tmp_path / "trash" / uuid4().hex / "deep").mkdir(parents=True)
    watch = backend.observe()
    await anext(watch)
    await until(lambda: not os.listdir(tmp_path / "trash"))
    await watch.aclose()  # type: ignore[attr-defined]
