"""The promises of the backend interface, the same for every engine."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections import Counter
from ipaddress import ip_address
from uuid import uuid4

import psutil
import pytest

from controller.errors import BackendUnavailableError, RunNotFoundError
from controller.protocol.model import Key, Launch, Outcome, Phase, Reason, State
from tests.support.engines import DEADLINE, Engine, Watched, derived_image


async def test_an_engine_keeps_its_identity_over_restarts_of_the_controller(engine: Engine) -> None:
    async def identity() -> str:
        backend = engine.connect()
        try:
            return await backend.open(engine.installation)
        finally:
            await backend.close()

    first = await identity()
    assert first.startswith(f"{engine.name}:")
    assert await identity() == first


async def test_a_ping_is_refused_before_the_backend_is_open_and_after_it_is_closed(engine: Engine) -> None:
    backend = engine.connect()
    with pytest.raises(BackendUnavailableError):
        await backend.ping()
    await backend.open(engine.installation)
    await backend.ping()
    await backend.close()
    with pytest.raises(BackendUnavailableError):
        await backend.ping()


async def test_pings_beside_runs_leave_nothing_behind_and_take_nothing_away(engine: Engine, watched: Watched) -> None:
    """Neither what runs while they come nor what has ended is forgotten, and this process holds nothing more after."""

    inert, running, ended = (engine.launch(command) for command in ("true", "sleep 600", "exit 3"))
    await watched.until("a listing", lambda: bool(watched.said))
    await asyncio.gather(*(watched.backend.ping() for _ in range(20)))  # now every connection is there
    before = belongings()
    await watched.create(inert)
    await watched.start(running)
    await watched.reaches(running.key, Phase.RUNNING)
    await watched.backend.ping()
    await watched.run(ended)
    for _ in range(30):
        await watched.backend.ping()
    await watched.lists(lambda listing: {seen.key for seen in listing.runs} == {inert.key, running.key, ended.key})
    await watched.backend.kill(running.key, (await watched.reaches(running.key, Phase.RUNNING)).run_uid)
    await watched.reaches(running.key, Phase.ENDED)
    for launch in (inert, running, ended):
        await watched.backend.delete(launch.key, None)
    await watched.backend.ping()
    async with asyncio.timeout(DEADLINE):
        await watched.lists(lambda listing: not listing.runs)
    until = time.monotonic() + DEADLINE
    while not belongings() <= before:  # a supervisor ends a moment after it told the end of its run
        assert time.monotonic() < until, belongings() - before
        await watched.lists(lambda listing: not listing.runs)


POOLS = ("process-backend_", "process-removal_", "asyncio_")  # beginnings of their threads' names


def belongings() -> Counter[str]:
    """What this process holds open, the children that it has not taken note of, and its threads.

    Without those of pools: a pool makes one whenever none is idle, up to its bound, and keeps it.
    """
    process = psutil.Process()
    pooled = sum(thread.name.startswith(POOLS) for thread in threading.enumerate())
    held = Counter({"descriptors": process.num_fds(), "threads": process.num_threads() - pooled})
    held["zombies"] = sum(child.status() == psutil.STATUS_ZOMBIE for child in process.children())
    return held


async def test_what_is_created_does_not_run_before_its_release(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    made = await watched.create(launch)
    assert made.phase is Phase.INERT
    await watched.lists(
        lambda listing: any(seen.key == launch.key and seen.phase is Phase.INERT for seen in listing.runs)
    )
    assert {seen.phase for seen in watched.seen(launch.key)} == {Phase.INERT}


@pytest.mark.parametrize("look", [False, True])
async def test_creating_again_finds_the_run_that_is_there(engine: Engine, look: bool, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    made = await watched.create(launch)
    again = await watched.create(launch, look=look)
    assert again.run_uid == made.run_uid
    assert again.phase is Phase.INERT
    await watched.backend.release(launch.key, made.run_uid)
    ended = await watched.reaches(launch.key, Phase.ENDED)
    after = await watched.create(launch, look=look)
    assert (after.run_uid, after.phase) == (made.run_uid, Phase.ENDED)
    assert after.outcome == ended.outcome


async def test_two_controllers_that_create_at_once_make_one_run(engine: Engine) -> None:
    launch = engine.launch("echo ran")
    async with engine.backend() as one, engine.backend() as other:
        await asyncio.gather(*(watched.create(launch) for watched in (one, other) for _ in range(4)))
        last = await one.create(launch)
        await one.lists(lambda listing: [seen.run_uid for seen in listing.runs] == [last.run_uid])


async def test_a_released_run_ends_with_its_exit_code_output_and_times(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo hello; exit 3")
    ended = await watched.run(launch)
    assert ended.outcome is not None
    assert (ended.outcome.state, ended.outcome.reason) == (State.FAILED, Reason.NON_ZERO_EXIT)
    assert ended.outcome.exit_code == 3
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert ended.started_at <= ended.ended_at
    output = await watched.backend.output(launch.key, ended.run_uid, 1000)
    assert output.tail == b"hello\n"
    assert not output.truncated


async def test_every_exit_code_is_the_commands_own(engine: Engine, watched: Watched) -> None:
    codes = (0, 1, 42, 125, 126, 127, 137, 143, 255)

    ended = await asyncio.gather(*(watched.run(engine.launch(f"exit {code}")) for code in codes))
    outcomes = [seen.outcome for seen in ended if seen.outcome is not None]
    assert [outcome.exit_code for outcome in outcomes] == list(codes)
    assert [outcome.reason for outcome in outcomes] == [Reason.COMPLETED, *[Reason.NON_ZERO_EXIT] * 8]


async def test_a_running_run_is_seen_running(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("sleep 60")
    await watched.start(launch)
    running = await watched.reaches(launch.key, Phase.RUNNING)
    assert running.started_at is not None
    assert running.outcome is None


async def test_a_run_starts_once_however_often_and_by_whomever_it_is_released(engine: Engine) -> None:
    launch = engine.launch("echo ran; exit 5")
    async with engine.backend() as one, engine.backend() as other:
        made = await one.create(launch)
        await asyncio.gather(
            *(watched.backend.release(launch.key, made.run_uid) for watched in (one, other) for _ in range(5))
        )
        await one.reaches(launch.key, Phase.ENDED)
        await other.backend.release(launch.key, made.run_uid)  # late: it has ended
        await other.lists(lambda listing: any(seen.phase is Phase.ENDED for seen in listing.runs))
        output = await one.backend.output(launch.key, made.run_uid, 1000)
        again = await one.create(launch, look=True)
    assert output.tail == b"ran\n"
    assert again.outcome is not None
    assert again.outcome.exit_code == 5


async def test_releasing_what_is_not_there_says_so(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    made = await watched.create(launch)
    await watched.backend.delete(launch.key, made.run_uid)
    with pytest.raises(RunNotFoundError):
        await watched.backend.release(launch.key, made.run_uid)
    another = await watched.create(launch, look=True)
    assert another.run_uid != made.run_uid
    with pytest.raises(RunNotFoundError):  # the name is taken again, by a run that was never bound
        await watched.backend.release(launch.key, made.run_uid)
    looked = await watched.create(launch, look=True)
    assert looked.phase is Phase.INERT


async def test_a_timeout_ends_the_run_and_is_told_apart_from_an_exit(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo before; sleep 60; echo after", timeout=1)
    ended = await watched.run(launch)
    assert ended.outcome is not None
    assert (ended.outcome.state, ended.outcome.reason) == (State.TIMED_OUT, Reason.DEADLINE_EXCEEDED)
    assert ended.outcome.exit_code is None
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert 0.9 <= (ended.ended_at - ended.started_at).total_seconds() < 10


@pytest.mark.real_shell
async def test_a_command_that_ignores_the_timeouts_signal_is_killed(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("trap '' TERM; echo deaf; while :; do sleep 1; done", timeout=1)
    ended = await watched.run(launch)
    assert ended.outcome is not None
    assert ended.outcome.state is State.TIMED_OUT
    assert (await watched.backend.output(launch.key, ended.run_uid, 1000)).tail.startswith(b"deaf\n")


async def test_a_killed_run_ends_at_once_and_leaves_its_outcome_to_be_read(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("sleep 60")
    made = await watched.start(launch)
    await watched.reaches(launch.key, Phase.RUNNING)
    await watched.backend.kill(launch.key, made.run_uid)
    ended = await watched.reaches(launch.key, Phase.ENDED)
    assert ended.outcome is not None
    assert ended.outcome.reason is Reason.KILLED
    await watched.backend.output(launch.key, made.run_uid, 1000)


async def test_killing_what_has_ended_changes_nothing(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("exit 4")
    ended = await watched.run(launch)
    await watched.backend.kill(launch.key, ended.run_uid)
    again = await watched.create(launch, look=True)
    assert again.outcome == ended.outcome
    await watched.backend.delete(launch.key, ended.run_uid)
    await watched.backend.kill(launch.key, ended.run_uid)


@pytest.mark.parametrize("command", ["sleep 60", "exit 1", None], ids=["running", "ended", "inert"])
async def test_what_is_deleted_is_gone_whatever_it_did(engine: Engine, command: str | None, watched: Watched) -> None:
    launch = engine.launch(command or "echo ran")
    made = await watched.create(launch)
    if command is not None:
        await watched.backend.release(launch.key, made.run_uid)
        await watched.reaches(launch.key, Phase.RUNNING if command.startswith("sleep") else Phase.ENDED)
    await watched.backend.delete(launch.key, made.run_uid)
    await watched.backend.delete(launch.key, made.run_uid)
    await watched.lists(lambda listing: all(seen.key != launch.key for seen in listing.runs))
    with pytest.raises(RunNotFoundError):
        await watched.backend.output(launch.key, made.run_uid, 1000)


async def test_deleting_an_attempt_leaves_the_other_attempts_alone(engine: Engine, watched: Watched) -> None:
    sandbox = uuid4()
    first, second = (engine.launch("exit 0", key=Key(sandbox, attempt)) for attempt in (1, 2))
    one = await watched.create(first)
    two = await watched.create(second)
    assert one.run_uid != two.run_uid
    await watched.backend.delete(first.key, None)
    await watched.lists(lambda listing: [seen.key for seen in listing.runs] == [second.key])
    await watched.backend.delete(second.key, one.run_uid)  # not a run of this attempt
    await watched.lists(lambda listing: [seen.key for seen in listing.runs] == [second.key])


async def test_the_next_controller_finds_runs_of_every_phase_and_their_ends(engine: Engine) -> None:
    inert, running, ended = (engine.launch(command) for command in ("echo x", "sleep 2; exit 7", "echo out; exit 8"))
    async with engine.backend() as first:
        for launch in (inert, running, ended):
            made = await first.create(launch)
            if launch is not inert:
                await first.backend.release(launch.key, made.run_uid)
        await first.reaches(running.key, Phase.RUNNING)
        await first.reaches(ended.key, Phase.ENDED)
    async with engine.backend() as second:
        assert (await second.reaches(inert.key, Phase.INERT)).outcome is None
        late = await second.reaches(ended.key, Phase.ENDED)
        assert late.outcome is not None
        assert late.outcome.exit_code == 8
        assert (await second.backend.output(ended.key, late.run_uid, 1000)).tail == b"out\n"
        finished = await second.reaches(running.key, Phase.ENDED)
        assert finished.outcome is not None
        assert finished.outcome.exit_code == 7


async def test_another_installations_runs_are_neither_seen_nor_touched(engine: Engine) -> None:
    if engine.name == "memory":
        pytest.skip("backend memory: each engine object is one installation")

    launch = engine.launch("sleep 60")
    stranger = Engine(engine.name, engine.connect, engine.real, engine.image)
    async with engine.backend() as ours, stranger.backend() as theirs:
        made = await ours.create(launch)
        await theirs.lists(lambda listing: not listing.runs)
        await theirs.backend.delete(launch.key, None)
        await ours.lists(lambda listing: [seen.run_uid for seen in listing.runs] == [made.run_uid])
        await ours.backend.delete(launch.key, made.run_uid)


async def test_a_controllers_mark_is_seen_by_every_other_on_the_engine_until_it_is_removed(
    engine: Engine, watched: Watched
) -> None:
    marks = watched.backend.marks
    if marks is None:
        pytest.skip(f"backend {engine.name}: nothing within its rights could hold a mark")
    name = f"a.host/{uuid4().hex[:12]}"
    await marks.leave(name)
    await marks.leave(name)
    async with engine.backend() as beside:
        assert beside.backend.marks is not None
        assert name in await beside.backend.marks.names()
        await beside.backend.marks.remove(name)
    await marks.remove(name)
    assert name not in await marks.names()
    assert marks.advice


async def test_another_installations_marks_are_not_seen(engine: Engine) -> None:
    stranger = Engine(engine.name, engine.connect, engine.real, engine.image)
    async with engine.backend() as ours, stranger.backend() as theirs:
        if ours.backend.marks is None or theirs.backend.marks is None or engine.name == "memory":
            pytest.skip(f"backend {engine.name}: it has no marks, or one installation alone")
        await ours.backend.marks.leave("a/1")
        try:
            assert await theirs.backend.marks.names() == set()
        finally:
            await ours.backend.marks.remove("a/1")


@pytest.mark.real_shell
async def test_output_is_the_end_of_both_streams_as_raw_bytes(engine: Engine, watched: Watched) -> None:
    launch = engine.launch(r"printf '\377\000\303'; printf 'err\n' >&2; printf 'no newline'")
    ended = await watched.run(launch)
    output = await watched.backend.output(launch.key, ended.run_uid, 1000)
    assert sorted(output.tail) == sorted(b"\xff\x00\xc3err\nno newline")
    assert not output.truncated
    short = await watched.backend.output(launch.key, ended.run_uid, 7)
    assert short.tail == output.tail[-7:]
    assert short.truncated


@pytest.mark.real_shell
async def test_of_much_output_the_end_is_kept(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("head -c 5242900 /dev/zero | tr '\\0' x; echo; echo end", timeout=60)
    ended = await watched.run(launch)
    output = await watched.backend.output(launch.key, ended.run_uid, 1 << 20)
    assert output.truncated
    assert len(output.tail) == 1 << 20
    assert output.tail == b"x" * ((1 << 20) - 5) + b"\nend\n"


@pytest.mark.real_shell
async def test_command_and_env_arrive_byte_for_byte(engine: Engine, watched: Watched) -> None:
    env = {
        "PLAIN": "a b",
        "DOLLARS": "$$ $(HOSTNAME) ${X} $",
        "QUOTES": "'\"`\\",
        "LINES": "one\ntwo\r\n\ttab",
        "UNICODE": "žluť 🐎 \u202e",
        "EMPTY": "",
        "PATH": "/nowhere:/bin:/usr/bin",
        "ENV": "/dev/null",
    }
    shown = "; ".join(f'printf "%s\\0" "${name}"' for name in env)
    told = "printf '%s|' '$$' '$(X' \"`printf quoted`\" 'ünï' $0 $#"
    command = f"{{ {shown}; }} | od -An -v -tx1 | tr -d ' \\n'; echo; {told}"

    launch = engine.launch(command, env=env)
    ended = await watched.run(launch)
    output = await watched.backend.output(launch.key, ended.run_uid, 10_000)
    values, words = output.tail.split(b"\n", 1)  # in hex: containerd's log drops the CR of a line's end
    assert bytes.fromhex(values.decode()).decode().split("\0")[:-1] == list(env.values())
    assert words.decode() == "$$|$(X|quoted|ünï|/bin/sh|0|"


@pytest.mark.real_shell
async def test_a_command_near_the_largest_size_runs(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("printf done #" + "x" * 65_000, env={"BIG": "y" * 60_000})
    ended = await watched.run(launch)
    assert (await watched.backend.output(launch.key, ended.run_uid, 100)).tail == b"done"


@pytest.mark.real_shell
async def test_the_controllers_environment_does_not_reach_the_command(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, watched: Watched
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret")

    launch = engine.launch("env; cat /dev/stdin")
    ended = await watched.run(launch)
    output = await watched.backend.output(launch.key, ended.run_uid, 10_000)
    assert ended.outcome is not None
    assert ended.outcome.exit_code == 0
    assert b"secret" not in output.tail
    assert b"DATABASE_URL" not in output.tail


@pytest.mark.real_shell
async def test_what_a_command_leaves_behind_is_killed_with_it(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("(sleep 300; echo late) & (setsid sleep 300 >/dev/null 2>&1 &) ; echo left; exit 0")
    ended = await watched.run(launch)
    assert ended.outcome is not None
    assert ended.outcome.exit_code == 0
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert (ended.ended_at - ended.started_at).total_seconds() < 20
    assert (await watched.backend.output(launch.key, ended.run_uid, 1000)).tail == b"left\n"


@pytest.mark.real_shell
async def test_a_command_that_kills_itself_has_128_and_the_signal(engine: Engine, watched: Watched) -> None:
    ended = await watched.run(engine.launch("kill -KILL $$"))
    assert ended.outcome is not None
    assert (ended.outcome.state, ended.outcome.exit_code) == (State.FAILED, 137)


@pytest.mark.real_shell
async def test_signals_have_their_default_meaning_in_the_command(engine: Engine, watched: Watched) -> None:
    ended = await watched.run(engine.launch("kill -INT $$; echo survived"))
    assert ended.outcome is not None
    assert ended.outcome.exit_code == 130


@pytest.mark.real_shell
async def test_the_work_directory_is_writable_and_the_commands_own(engine: Engine, watched: Watched) -> None:
    command = base64.b64encode(b"hello").decode()
    launch = engine.launch(f"pwd > where; echo {command} > file; ls | sort; cat file")
    ended = await watched.run(launch)
    output = await watched.backend.output(launch.key, ended.run_uid, 1000)
    assert output.tail.decode() == f"file\nwhere\n{command}\n"


@pytest.mark.real_shell
@pytest.mark.parametrize("network", ["none", "egress"])
async def test_a_commands_own_host_name_resolves(engine: Engine, network: str, watched: Watched) -> None:
    if engine.name == "process":
        network = "none"
        try:
            socket.gethostbyname(socket.gethostname())
        except OSError:
            pytest.skip("backend process: this host's own name does not resolve, and commands have no other")

    launch = engine.launch(
        "hostname -i && grep -w localhost /etc/hosts && [ $(hostname | wc -c) -le 64 ]", network=network
    )
    ended = await watched.run(launch)
    output = (await watched.backend.output(launch.key, ended.run_uid, 1000)).tail.decode()
    assert ended.outcome is not None
    assert ended.outcome.state is State.SUCCEEDED, output
    address, *hosts = output.split("\n")
    assert ip_address(address.split()[0])
    assert any(line.split()[:1] == ["127.0.0.1"] for line in hosts)


async def outcome_of(watched: Watched, launch: Launch) -> tuple[Outcome, bytes]:
    """Runs it to its end; how it ended and the end of its output."""
    ended = await watched.run(launch)
    assert ended.outcome is not None
    return ended.outcome, (await watched.backend.output(launch.key, ended.run_uid, 10_000)).tail


@pytest.mark.real_shell
async def test_signals_to_the_commands_own_group_are_its_own_business(engine: Engine, watched: Watched) -> None:
    signals = "HUP INT QUIT USR1 USR2 ALRM TERM PIPE XFSZ"

    command = f"for s in {signals}; do trap : $s; kill -$s 0; done; echo fine; exit 0"
    outcome, output = await outcome_of(watched, engine.launch(command))
    assert (outcome.state, outcome.exit_code) == (State.SUCCEEDED, 0)
    assert output == b"fine\n"


@pytest.mark.real_shell
async def test_a_command_that_kills_its_group_ends_with_that_signal(engine: Engine, watched: Watched) -> None:
    outcome, _ = await outcome_of(watched, engine.launch("sleep 60 & kill -KILL 0"))
    assert (outcome.reason, outcome.exit_code) == (Reason.NON_ZERO_EXIT, 137)


@pytest.mark.real_shell
async def test_signals_to_the_process_around_the_command_change_nothing(engine: Engine, watched: Watched) -> None:
    command = "for s in QUIT USR1 USR2 ALRM PIPE CONT; do kill -$s $PPID; done; echo fine; exit 3"
    outcome, output = await outcome_of(watched, engine.launch(command))
    assert (outcome.reason, outcome.exit_code) == (Reason.NON_ZERO_EXIT, 3)
    assert output == b"fine\n"


@pytest.mark.real_shell
@pytest.mark.parametrize("signal", ["INT", "STOP"])
async def test_no_signal_to_its_group_takes_a_command_out_of_its_timeout(
    engine: Engine, signal: str, watched: Watched
) -> None:
    command = f"trap : INT; kill -{signal} 0; while :; do sleep 60; done"
    outcome, _ = await outcome_of(watched, engine.launch(command, timeout=2))
    assert outcome.state is State.TIMED_OUT


@pytest.mark.real_shell
async def test_temporary_files_have_the_room_of_disk_mib(engine: Engine, watched: Watched) -> None:
    command = 'f=$(mktemp); head -c 104857600 /dev/zero >"$f"; wc -c <"$f"; ls -A'
    outcome, output = await outcome_of(watched, engine.launch(command, disk_mib=1024))
    assert outcome.state is State.SUCCEEDED
    assert output == b"104857600\n"  # and nothing appears in the work directory


@pytest.mark.real_shell
async def test_shared_memory_has_the_room_of_memory_mib(engine: Engine, watched: Watched) -> None:
    command = "f=$(mktemp -p /dev/shm); head -c 104857600 /dev/zero >$f; wc -c <$f; rm $f"
    outcome, output = await outcome_of(watched, engine.launch(command, memory_mib=2048, disk_mib=128))
    assert outcome.state is State.SUCCEEDED
    assert output == b"104857600\n"


@pytest.mark.real_shell
async def test_files_take_nothing_from_memory_mib(engine: Engine, watched: Watched) -> None:
    holding = "{ head -c 125829120 /dev/zero; sleep 3; } | tail -c 125829120 | wc -c"

    command = f"head -c 188743680 /dev/zero >big; {holding}"
    outcome, output = await outcome_of(watched, engine.launch(command, memory_mib=256, disk_mib=256))
    assert outcome.state is State.SUCCEEDED
    assert output == b"125829120\n"


@pytest.mark.real_shell
@pytest.mark.parametrize("place", [".", "$(dirname $(mktemp -u))", "/dev/shm"])
async def test_no_file_is_larger_than_disk_mib_and_one(engine: Engine, place: str, watched: Watched) -> None:
    command = f"f={place}/sparse.$$; truncate -s 17M $f && echo made; truncate -s 18M $f || echo refused; rm $f"
    outcome, output = await outcome_of(watched, engine.launch(command, disk_mib=16))
    assert outcome.state is State.SUCCEEDED
    words = output.split()
    assert words[0] == b"made"
    assert words[-1] == b"refused"


@pytest.mark.real_shell
async def test_processes_over_memory_mib_do_not_succeed(engine: Engine, watched: Watched) -> None:
    held = 104857600  # less than the engine's own bound on memory and files together
    command = f"mkfifo p; {{ head -c {held} /dev/zero; sleep 20; }} >p & exec tail -c {held} p"
    outcome, _ = await outcome_of(watched, engine.launch(command, memory_mib=64, disk_mib=64))
    assert outcome.state is State.FAILED
    if engine.name != "process":  # there an allocation fails
        assert outcome.reason is Reason.OOM_KILLED
        assert "memory_mib = 64" in (outcome.message or "")


FILES_IN_VOLUMES = """
RUN mkdir -p /app/lib /outer/inner /empty && echo 'cat /app/lib/name' >/app/run.sh && echo lib >/app/lib/name \\
 && echo outer >/outer/name && echo inner >/outer/inner/name && ln -s /app /link
VOLUME /app /outer /outer/inner /empty /link /etc
"""


@pytest.mark.real_shell
async def test_what_an_image_has_in_its_declared_volumes_is_there(engine: Engine, watched: Watched) -> None:
    if engine.image is None:
        pytest.skip(f"backend {engine.name}: it has no images")

    told = "sh /app/run.sh; sh /link/run.sh; cat /outer/name /outer/inner/name; id -u; grep -c root /etc/passwd"
    with derived_image(engine, FILES_IN_VOLUMES) as image:
        launch = engine.launch(told, image=image)
        ended = await watched.run(launch)
        output = (await watched.backend.output(launch.key, ended.run_uid, 1000)).tail.decode()
        assert output.split() == ["lib", "lib", "outer", "inner", "1000", "1"]
