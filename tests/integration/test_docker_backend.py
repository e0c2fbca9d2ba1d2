"""What the Docker backend alone promises; what all backends promise is in tests/conformance."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web

from controller.backends.docker import container, objects
from controller.backends.docker.backend import DockerBackend
from controller.backends.labels import labels
from controller.errors import (
    BackendUnavailableError,
    ImagePullingError,
    RequestRejectedError,
    RunNotFoundError,
    SandboxError,
    TransientEngineError,
)
from controller.protocol.model import Key, Launch, Listing, ObservedRun, Phase, Reason, State
from tests.support.engines import SHELL_IMAGE, Engine, Watched, ended, make_engine

REGISTRY = "localhost:5000"
SOCKET = "/var/run/docker.sock"
TWISTED = """
FROM busybox:stable
VOLUME /data /work
HEALTHCHECK --interval=1s CMD touch /work/healthy
USER 0
ENTRYPOINT ["/bin/false"]
"""


def docker(*words: str, stdin: str = "", check: bool = True) -> str:
    """The docker command line; what it writes."""
    env = os.environ | {"DOCKER_BUILDKIT": "0"}
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True, check=False, env=env)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The Docker engine, rid at the end of this test's containers."""
    made = make_engine("docker", tmp_path)
    yield made
    left = docker("ps", "-aq", "--filter", f"label=installation={made.installation}").split()
    if left:
        docker("rm", "-fv", *left)
    volumes = docker("volume", "ls", "-q", "--filter", f"label=installation={made.installation}").split()
    if volumes:
        docker("volume", "rm", "-f", *volumes)


@pytest.fixture
def image(request: pytest.FixtureRequest, engine: Engine) -> Iterator[str]:
    """An image built from the text that the test gives."""
    tag = f"backend-test:{uuid4().hex}"
    docker("build", "-q", "-t", tag, "-", stdin=request.param)
    yield tag
    docker("rmi", "-f", tag)


async def look_anew(engine: Engine, key: Key) -> ObservedRun:
    """What another controller sees of that attempt, in its first listing."""
    backend = engine.connect()
    try:
        await backend.open(engine.installation)
        async for sight in backend.observe():
            assert isinstance(sight, Listing)
            (found,) = [seen for seen in sight.runs if seen.key == key]
            return found
    finally:
        await backend.close()
    raise AssertionError


async def until(what: str, true: Callable[[], bool]) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


async def test_its_identity_is_the_engines(engine: Engine) -> None:
    identity = await checked(engine.connect(), engine)
    assert identity == f"docker:{docker('info', '--format', '{{.ID}}')}"


async def checked(backend: Any, engine: Engine) -> str:
    try:
        return str(await backend.open(engine.installation))
    finally:
        await backend.close()


async def test_docker_host_names_the_engine_whatever_docker_context_is_current(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text('{"currentContext": "elsewhere"}')
    monkeypatch.setenv("DOCKER_HOST", os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (await checked(engine.connect(), engine)).startswith("docker:")


@pytest.mark.parametrize("url", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1", "nonsense", "tcp://x:999999"])
async def test_without_an_engine_it_says_what_to_do(engine: Engine, url: str) -> None:
    with pytest.raises(BackendUnavailableError, match="DOCKER_HOST"):
        await checked(DockerBackend(SHELL_IMAGE, url), engine)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without the right to the socket")
async def test_without_the_right_it_says_what_to_do(engine: Engine) -> None:
    backend = DockerBackend(SHELL_IMAGE, f"unix://{SOCKET}")
    os.seteuid(65534)
    try:
        with pytest.raises(BackendUnavailableError, match="group"):
            await checked(backend, engine)
    finally:
        os.seteuid(0)


async def test_a_sandbox_can_do_little(engine: Engine, watched: Watched) -> None:
    command = """
    id -u; id -g
    grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status
    touch /x /etc/x /.sandbox/x 2>/dev/null && echo wrote
    ls /sys/class/net; ls /var/run/docker.sock 2>/dev/null
    pwd; echo x > file && chmod +x file && cat file; cat /proc/self/oom_score_adj
    dd if=/dev/zero of=/work/big bs=1M count=64 2>/dev/null || echo full
    """
    _, outcome, output = await ended(watched, engine.launch(command))
    assert outcome.state is State.SUCCEEDED
    words = b"1000 1000 CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 lo /work x 500 full"
    assert output.split() == words.split()


@pytest.mark.parametrize("image", [TWISTED], indirect=True)
async def test_an_image_sets_nothing_that_matters(engine: Engine, image: str, watched: Watched) -> None:
    command = "id -u; dd if=/dev/zero of=/data/x bs=1M count=100 2>/dev/null || echo bounded; sleep 2; ls /work; exit 5"
    seen, outcome, output = await ended(watched, engine.launch(command, image=image, memory_mib=256))
    assert outcome.exit_code == 5
    assert output == b"1000\nbounded\n"
    volumes = docker("inspect", seen.run_uid, "--format", "{{range .Mounts}}{{.Name}} {{end}}").split()
    assert len(volumes) == 1
    await watched.backend.delete(seen.key, seen.run_uid)
    assert docker("volume", "inspect", *volumes, check=False) == "[]"


WITH_FILES = """
FROM busybox:stable
RUN mkdir -p /app/lib /outer/inner /empty/a/b /hidden /tmp/sub /work/sub && touch /empty/a/.keep && ln -s /app /link \\
 && echo 'echo from $0; cat /app/lib/x' >/app/run.sh && echo lib >/app/lib/x && echo hidden >/hidden/file \\
 && for each in outer outer/inner tmp/sub work/sub; do echo $each >/$each/file; done
VOLUME /app /link /outer /outer/inner /empty /hidden /hidden/none /tmp/sub /work/sub /etc none
"""


@pytest.mark.parametrize("image", [WITH_FILES], indirect=True)
async def test_what_an_image_has_in_its_volumes_is_there_and_nothing_unbounded_is_written(
    engine: Engine, image: str, watched: Watched
) -> None:
    command = """
    sh /app/run.sh; sh /link/run.sh; cat /outer/file /outer/inner/file /tmp/sub/file /work/sub/file
    grep -c root /etc/passwd; grep -c localhost /etc/hosts; ls -A /empty
    for place in /app /app/lib /link /outer /outer/inner /etc /tmp/sub /work/sub; do
        touch $place/new 2>/dev/null && echo wrote $place
    done
    (echo x >>/app/run.sh) 2>/dev/null && echo wrote a file
    for place in /empty /none /hidden; do
        dd if=/dev/zero of=$place/big bs=1M count=100 2>/dev/null || du -m $place/big
        rm -f $place/big
    done
    """
    words = (
        "from /app/run.sh lib from /link/run.sh lib outer outer/inner tmp/sub work/sub 1 2"
        " 64 /empty/big 64 /none/big 64 /hidden/big"
    )
    own = f"label=installation={engine.installation}"
    for _ in range(2):  # the first looks into the image, the next knows it
        seen, _, output = await ended(watched, engine.launch(command, image=image, memory_mib=512, disk_mib=128))
        assert output.decode().split() == words.split()
        assert docker("volume", "ls", "-q", "--filter", own)
        await watched.backend.delete(seen.key, seen.run_uid)
        assert docker("volume", "ls", "-q", "--filter", own) == ""
        assert docker("ps", "-aq", "--filter", own) == ""


MANY = f"""
FROM busybox:stable
RUN for i in $(seq 100 399); do mkdir -p /v/$i; done; for i in $(seq 100 109); do echo $i >/v/$i/file; done
VOLUME {" ".join(f"/v/{number}" for number in range(100, 400))}
"""


@pytest.mark.parametrize("image", [MANY], indirect=True)
async def test_hundreds_of_volumes_are_bounded_and_leave_nothing(engine: Engine, image: str, watched: Watched) -> None:
    command = """
    cat /v/100/file /v/109/file; mount | grep -c ' on /v/'
    touch /v/107/x 2>/dev/null || echo refused
    touch /v/399/x && echo wrote
    """
    seen, _, output = await ended(watched, engine.launch(command, image=image, memory_mib=256))
    assert output.decode().split() == ["100", "109", "300", "refused", "wrote"]
    await watched.backend.delete(seen.key, seen.run_uid)
    assert docker("volume", "ls", "-q", "--filter", f"label=installation={engine.installation}") == ""


@pytest.mark.parametrize("image", [WITH_FILES], indirect=True)
async def test_volumes_whose_container_somebody_removed_are_cleared_away(
    engine: Engine, image: str, watched: Watched
) -> None:
    own = f"label=installation={engine.installation}"
    made = await watched.create(engine.launch("true", image=image))
    assert len(docker("volume", "ls", "-q", "--filter", own).split()) > 2
    docker("rm", "-f", made.run_uid)
    await until("the volumes to be gone", lambda: not docker("volume", "ls", "-q", "--filter", own))


async def test_the_state_file_cannot_fill_the_disk(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("dd if=/dev/zero of=/.sandbox/state bs=1M count=64 conv=notrunc 2>&1; ls -l /.sandbox/state")
    _, outcome, output = await ended(watched, launch)
    assert outcome.state is State.SUCCEEDED  # its own end fits all the same
    assert int(output.split()[-5 if output.split()[-1].startswith(b"/") else -1]) <= 17 << 20


async def test_a_restart_by_hand_changes_nothing(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo ran; sleep 1.1; exit 3")
    seen, outcome, output = await ended(watched, launch)
    docker("start", "-a", seen.run_uid, check=False)
    again = await look_anew(engine, launch.key)
    assert (again.phase, again.outcome) == (Phase.ENDED, outcome)
    for before, after in ((seen.started_at, again.started_at), (seen.ended_at, again.ended_at)):
        assert before is not None
        assert after is not None
        assert abs((before - after).total_seconds()) < 1.1  # the wrapper's clock has whole seconds
    assert (await watched.backend.output(launch.key, seen.run_uid, 1000)).tail == output == b"ran\n"


async def test_a_release_that_slept_through_the_whole_run_changes_nothing(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    made = await watched.backend.create(launch, look=False)
    assert made is not None
    sleeper, wake = engine.connect(), asyncio.Event()
    assert isinstance(sleeper, DockerBackend)
    await sleeper.open(engine.installation)
    send = sleeper._engine.send

    async def slow(method: str, path: str, **more: Any) -> None:
        await wake.wait()
        await send(method, path, **more)

    sleeper._engine.send = slow  # type: ignore[method-assign]
    late = asyncio.create_task(sleeper.release(launch.key, made.run_uid))
    await watched.backend.release(launch.key, made.run_uid)
    seen = await watched.reaches(launch.key, Phase.ENDED)
    wake.set()
    await late
    docker("wait", made.run_uid)
    assert docker("logs", made.run_uid) == "ran"
    assert (await look_anew(engine, launch.key)).outcome == seen.outcome
    await sleeper.close()


async def half_made(engine: Engine, launch: Launch) -> str:
    """What a controller leaves that dies between creation and upload; its id."""
    backend = engine.connect()
    assert isinstance(backend, DockerBackend)
    await backend.open(engine.installation)
    send = backend._engine.send

    async def dies(method: str, path: str, **more: Any) -> None:
        if method == "PUT":
            raise TransientEngineError("the controller is dead")
        await send(method, path, **more)

    backend._engine.send = dies  # type: ignore[method-assign]
    with pytest.raises(TransientEngineError, match="dead"):
        await backend.create(launch, look=False)
    await backend.close()
    return docker("ps", "-aq", "--no-trunc", "--filter", f"name={launch.key.name}")


@pytest.mark.parametrize("look", [True, False])
async def test_what_a_dead_controller_left_half_made_is_made_anew(engine: Engine, look: bool, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    left = await half_made(engine, launch)
    if not look:
        with pytest.raises(TransientEngineError):
            await watched.backend.create(launch, look=False)
    made = await watched.backend.create(launch, look=True)
    assert made is not None
    assert made.run_uid != left
    with pytest.raises(RunNotFoundError):
        await watched.backend.release(launch.key, left)
    await watched.backend.release(launch.key, made.run_uid)
    assert (await watched.reaches(launch.key, Phase.ENDED)).run_uid == made.run_uid


async def test_what_is_half_made_never_runs(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    left = await half_made(engine, launch)
    await watched.backend.release(launch.key, left)
    assert (await watched.reaches(launch.key, Phase.NEVER_STARTED)).run_uid == left
    assert docker("logs", left) == ""


@pytest.mark.parametrize("look", [True, False])
async def test_a_container_that_is_found_gets_no_second_file(engine: Engine, look: bool, watched: Watched) -> None:
    launch = engine.launch("echo ran")
    made = await watched.backend.create(launch, look=False)
    assert made == await watched.backend.create(launch, look=look)
    assert made is not None
    await watched.backend.release(launch.key, made.run_uid)
    seen = await watched.reaches(launch.key, Phase.ENDED)
    assert seen == await watched.backend.create(launch, look=look)
    docker("start", "-a", made.run_uid, check=False)
    assert docker("logs", made.run_uid) == "ran"


async def test_foreign_containers_are_left_alone(engine: Engine, watched: Watched) -> None:
    launch, other = engine.launch("true"), Key(uuid4(), 1)
    theirs = labels(other, str(engine.installation))
    foreign = [
        foreign_container(launch.key.name, {}),
        foreign_container(f"copy-{uuid4()}", theirs),
        foreign_container(f"garbage-{uuid4()}", theirs | {"sandboxId": "../x", "attempt": "9" * 5000}),
    ]
    try:
        with pytest.raises(RequestRejectedError) as refused:
            await watched.backend.create(launch, look=False)
        assert refused.value.outcome.reason is Reason.NAME_CONFLICT
        for uid in foreign:
            for key in (launch.key, other):
                await watched.backend.kill(key, uid)
                await watched.backend.delete(key, uid)
                await watched.backend.delete(key, None)
                with pytest.raises(RunNotFoundError):
                    await watched.backend.release(key, uid)
                with pytest.raises(RunNotFoundError):
                    await watched.backend.output(key, uid, 10)
        await watched.lists(lambda listing: not listing.runs)
        running = docker("ps", "-q", "--no-trunc").split()
        assert set(foreign) <= set(running)
    finally:
        docker("rm", "-f", *foreign)


def foreign_container(name: str, labels: dict[str, str]) -> str:
    words = [word for each, value in labels.items() for word in ("--label", f"{each}={value}")]
    return docker("run", "-d", "--network=none", "--name", name, *words, SHELL_IMAGE, "sleep", "1000")


@pytest.mark.parametrize(
    ("command", "reason", "code", "words"),
    [
        ("tail /dev/zero", Reason.OOM_KILLED, 137, "memory_mib = 64"),
        ("tail /dev/zero; exit 3", Reason.NON_ZERO_EXIT, 3, "memory_mib = 64"),
        ("head -c 15m /dev/zero >x; cp x /tmp; sleep 60", Reason.EVICTED, 137, "30 MiB, over disk_mib = 16"),
        ("exit 137", Reason.NON_ZERO_EXIT, 137, "signal 9"),
        (": > /.sandbox/state; exit 3", Reason.NON_ZERO_EXIT, 3, "3"),
        ("yes exit 0 | head -c 300000 > /.sandbox/state; exit 3", Reason.NON_ZERO_EXIT, 3, "3"),
        ("echo exit 0 >> /.sandbox/state; exit 3", Reason.COMPLETED, 0, ""),  # belies itself alone
    ],
)
async def test_how_it_ended(
    engine: Engine, command: str, reason: Reason, code: int, words: str, watched: Watched
) -> None:
    _, outcome, _ = await ended(watched, engine.launch(command))
    assert (outcome.reason, outcome.exit_code) == (reason, code)
    assert words in (outcome.message or "")


async def test_killed_and_then_restarted_it_stays_killed(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo ran; sleep 1000")
    made = await watched.backend.create(launch, look=False)
    assert made is not None
    await watched.backend.release(launch.key, made.run_uid)
    await until("its output", lambda: docker("logs", made.run_uid) == "ran")
    await watched.backend.kill(launch.key, made.run_uid)
    seen = await watched.reaches(launch.key, Phase.ENDED)
    assert seen.outcome is not None
    assert (seen.outcome.reason, seen.outcome.exit_code) == (Reason.KILLED, 137)
    docker("start", "-a", made.run_uid, check=False)
    again = (await look_anew(engine, launch.key)).outcome
    assert again is not None
    assert (again.reason, again.exit_code) == (Reason.KILLED, None)
    assert docker("logs", made.run_uid) == "ran"


async def test_output_is_the_bytes_as_they_came(engine: Engine, watched: Watched) -> None:
    _, _, output = await ended(watched, engine.launch(r"printf 'a\377\000\r\n'; printf '\033]0;x\007 end' >&2"))
    assert output == b"a\xff\0\r\n\x1b]0;x\x07 end"


@pytest.mark.parametrize(
    ("command", "tail"),
    [
        ("head -c 52428801 /dev/zero | tr '\\0' x; printf '\\nend'", b"x" * ((1 << 20) - 4) + b"\nend"),
        (
            "yes 0123456789abcdef | head -n 3000000; echo end",
            (b"0123456789abcdef\n" * 70000)[4 - (1 << 20) :] + b"end\n",
        ),
    ],
    ids=["one line of 50 MiB", "51 MB of lines"],
)
async def test_of_much_output_the_end_is_kept(engine: Engine, command: str, tail: bytes, watched: Watched) -> None:
    seen = await watched.run(engine.launch(command, timeout=100))
    output = await watched.backend.output(seen.key, seen.run_uid, 1 << 20)
    assert output.truncated
    assert output.tail == tail
    most = await watched.backend.output(seen.key, seen.run_uid, 64 << 20)
    assert most.truncated  # no limit of ours, and the engine dropped the beginning all the same
    assert len(most.tail) >= 5 << 20
    assert most.tail.endswith(tail)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"{REGISTRY}/no-such-image:1", Reason.IMAGE_PULL_FAILED),
        ("sha256:" + "0" * 64, Reason.IMAGE_PULL_FAILED),
        ("UPPER", Reason.INVALID_REQUEST),
        ("../containers/json", Reason.INVALID_REQUEST),
        ("a b?c#d%2e", Reason.INVALID_REQUEST),
        ("é" * 300, Reason.INVALID_REQUEST),
        ("localhost:5999/none:1", None),  # nobody listens: it may yet come
    ],
)
async def test_images_that_are_not_there(engine: Engine, name: str, reason: Reason | None, watched: Watched) -> None:
    error = await why_away(watched, engine.launch("true", image=name))
    assert reason is (error.outcome.reason if isinstance(error, RequestRejectedError) else None)


async def why_away(watched: Watched, launch: Launch) -> SandboxError:
    """What becomes of an attempt whose image cannot be had."""
    while True:
        with pytest.raises((TransientEngineError, RequestRejectedError)) as caught:
            await watched.backend.create(launch, look=False)
        if not (isinstance(caught.value, ImagePullingError) and caught.value.over is not None):
            return caught.value
        await caught.value.over


async def test_a_missing_image_is_pulled_once(engine: Engine, watched: Watched) -> None:
    name = f"{REGISTRY}/backend-test:{uuid4().hex}"
    docker("tag", SHELL_IMAGE, name)
    if "digest:" not in docker("push", name, check=False):
        docker("rmi", name)
        pytest.skip(f"no registry at {REGISTRY}")
    docker("rmi", name)
    backend = watched.backend
    assert isinstance(backend, DockerBackend)
    pulls, fetch = [], backend._images._pulls._fetch

    async def counted(image: str, heard: Callable[[], None]) -> None:
        pulls.append(image)
        await fetch(image, heard)

    backend._images._pulls._fetch = counted
    launches = [engine.launch("true", image=name) for _ in range(4)]
    try:
        made = await asyncio.gather(*(watched.create(launch) for launch in launches))
        assert all(run.phase is Phase.INERT for run in made)
        assert pulls == [name]
    finally:
        docker("rmi", "-f", name)


async def test_what_the_engine_calls_invalid_is_refused_in_its_words(engine: Engine, watched: Watched) -> None:
    with pytest.raises(RequestRejectedError, match="environment variable") as refused:
        await watched.backend.create(engine.launch("true", env={"": "x"}), look=False)
    assert refused.value.outcome.reason is Reason.INVALID_REQUEST


async def test_more_cores_than_the_engine_has_are_no_error(engine: Engine, watched: Watched) -> None:
    _, outcome, _ = await ended(watched, engine.launch("true", cpu_millis=256_000))
    assert outcome.state is State.SUCCEEDED


@pytest.mark.parametrize("image", ["FROM scratch\nVOLUME /data\n"], indirect=True)
async def test_an_image_without_a_shell_is_refused(engine: Engine, image: str, watched: Watched) -> None:
    launch = engine.launch("true", image=image)
    made = await watched.backend.create(launch, look=False)
    assert made is not None
    for _ in range(2):
        with pytest.raises(RequestRejectedError, match="/bin/sh") as refused:
            await watched.backend.release(launch.key, made.run_uid)
        assert refused.value.outcome.reason is Reason.START_FAILED


@pytest.mark.parametrize(
    "image", ["FROM busybox:stable\nRUN rm /bin/sh; echo junk >/bin/sh; chmod 755 /bin/sh\n"], indirect=True
)
async def test_a_shell_that_is_none_is_said_so(engine: Engine, image: str, watched: Watched) -> None:
    _, outcome, output = await ended(watched, engine.launch("true", image=image))
    assert outcome.reason is Reason.START_FAILED
    assert b"exec format error" in output


@asynccontextmanager
async def proxy(path: Path) -> AsyncIterator[Callable[[], None]]:
    """A way to the engine that can be cut."""
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(SOCKET)
        writers.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    def cut() -> None:
        for writer in writers:
            writer.transport.abort()

    async with await asyncio.start_unix_server(serve, path):
        yield cut
        cut()


async def test_a_broken_stream_of_events_is_told(engine: Engine, tmp_path: Path) -> None:
    async with proxy(tmp_path / "docker.sock") as cut:
        backend = DockerBackend(SHELL_IMAGE, f"unix://{tmp_path / 'docker.sock'}")
        await backend.open(engine.installation)
        sights = backend.observe()
        assert isinstance(await anext(sights), Listing)
        cut()
        with pytest.raises(TransientEngineError):
            await anext(sights)
        await backend.close()


async def test_the_state_file_is_sent_once_even_where_the_answer_is_lost(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxy(tmp_path / "docker.sock") as cut:
        backend = DockerBackend(SHELL_IMAGE, f"unix://{tmp_path / 'docker.sock'}")
        await backend.open(engine.installation)
        sent = []

        async def body() -> AsyncIterator[bytes]:
            sent.append(True)
            yield container.empty_state()
            cut()

        monkeypatch.setattr(objects, "_once", lambda _: body())
        with pytest.raises(TransientEngineError):
            await backend.create(engine.launch("true"), look=False)
        assert len(sent) == 1
        await backend.close()


@pytest.mark.parametrize("seen_first", [True, False])
async def test_a_run_that_is_removed_as_it_is_released_is_known_never_to_have_started(
    seen_first: bool, tmp_path: Path
) -> None:
    key, installation, run_uid = Key(uuid4(), 1), uuid4(), "ab" * 32
    state = {"Status": "removing" if seen_first else "created", "StartedAt": "0001-01-01T00:00:00Z"}
    inspected = {
        "Id": run_uid,
        "Name": f"/{key.name}",
        "Config": {"Labels": labels(key, str(installation))},
        "State": state,
    }

    async def info(request: web.Request) -> web.Response:
        return web.json_response({"ID": "one", "MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True})

    async def inspect(request: web.Request) -> web.Response:
        return web.json_response(inspected)

    async def start(request: web.Request) -> web.Response:
        state["Status"] = "dead"
        words = "container is marked for removal and cannot be started"
        return web.json_response({"message": words}, status=409)

    app = web.Application()
    app.router.add_get("/info", info)
    app.router.add_get(f"/containers/{run_uid}/json", inspect)
    app.router.add_post(f"/containers/{run_uid}/start", start)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "docker.sock")).start()
    backend = DockerBackend(SHELL_IMAGE, f"unix://{tmp_path / 'docker.sock'}")
    try:
        await backend.open(installation)
        with pytest.raises(RunNotFoundError):
            await backend.release(key, run_uid)
    finally:
        await backend.close()
        await runner.cleanup()


async def test_a_ping_tells_an_engine_that_is_away_and_one_that_is_another(tmp_path: Path) -> None:
    said = {"ID": "one", "Name": "host", "MemoryLimit": True, "CpuCfsQuota": True, "PidsLimit": True}

    async def info(request: web.Request) -> web.Response:
        return web.json_response(said)

    @asynccontextmanager
    async def engine() -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/info", info)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.UnixSite(runner, str(tmp_path / "docker.sock")).start()
        try:
            yield
        finally:
            await runner.cleanup()

    backend = DockerBackend(SHELL_IMAGE, f"unix://{tmp_path / 'docker.sock'}")
    async with engine():
        assert await backend.open(uuid4()) == "docker:one"
        await backend.ping()
    for _ in range(3):
        with pytest.raises(BackendUnavailableError, match="does not answer"):
            await backend.ping()
    async with engine():
        await backend.ping()
        said["ID"] = "two"
        with pytest.raises(BackendUnavailableError, match="another Docker engine"):
            await backend.ping()
    await backend.close()
