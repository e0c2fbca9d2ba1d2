"""The command line, and the one place where the parts are wired together."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from uuid import uuid4

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports below, Ctrl-C would leave a trace

from controller import log as logs
from controller import terminal
from controller.abandoned import Abandoned
from controller.backends.base import Backend
from controller.backends.connect import AT_ONCE, LAUNCHING, connect
from controller.carry import Carrier
from controller.compare import Comparison
from controller.db.installation import settle_identity
from controller.db.listener import listen
from controller.db.migrate import check_schema, migrate, retain
from controller.db.pool import open_pool, refuse_shared_sessions
from controller.db.registry import Registry
from controller.db.store import Queue
from controller.drain import drain
from controller.errors import OnlyReads, SandboxError, SettingsError
from controller.http import Http
from controller.live import Lives
from controller.loop import Controller, Pace, cancel
from controller.metrics import Metrics
from controller.presence import RENAMED, Presence
from controller.requester.explain import explain
from controller.requester.submit import add_options, submit
from controller.settings import OwnersSettings, Settings
from controller.steps import Steps

log = logging.getLogger("controller")

READS_SECONDS = 1.0  # between looks at a database that only reads

MOST_SECONDS = 604_800  # of waiting: a sandbox's own timeout is no longer


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit code."""
    terminal.prepare()
    try:
        options = _parser().parse_args(words)
        code: int = options.run(options)
        return code
    except SandboxError as error:
        terminal.say(f"{options.verb}: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        terminal.finish()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m controller", description="A row becomes a sandbox.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="claim rows and run them").set_defaults(run=run)
    migrating = verbs.add_parser("migrate", help="bring the database to this version")
    whose = migrating.add_mutually_exclusive_group()
    for choice, meaning in {
        "copy": "this database is a copy and its original lives on: take a new id, leave what runs to the original",
        "moved": "this database was moved and its original is gone: keep the id, and what runs",
    }.items():
        whose.add_argument(f"--{choice}", dest="whose", action="store_const", const=choice, help=meaning)
    migrating.set_defaults(run=run_migrate)
    give_up = verbs.add_parser("give-up", help="end or queue again every sandbox of an engine that is gone for good")
    give_up.add_argument("engine", metavar="ENGINE", help="as `drain` names it")
    give_up.set_defaults(run=run_give_up)
    draining = verbs.add_parser("drain", help="cancel everything, wait until it has ended, and clean up")
    draining.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="SECONDS", help="give up after (default: 300)"
    )
    draining.set_defaults(run=run_drain)
    asking = verbs.add_parser("submit", help="ask for one sandbox, wait for it, and end as it did")
    add_options(asking)
    asking.set_defaults(run=submit)
    explaining = verbs.add_parser("explain", help="tell all about one sandbox")
    explaining.add_argument("id", help="the id that its insert returned")
    explaining.set_defaults(run=explain)
    demo = verbs.add_parser("demo", help="show it all on a Postgres of its own, which is gone at the end")
    demo.add_argument("--backend", choices=("docker", "process"), help="default: docker where an engine answers")
    demo.set_defaults(run=run_demo)
    return parser


def _seconds(text: str) -> float:
    """An argument that is a length of time."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MOST_SECONDS:  # nor is `nan` anything of that
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of seconds over 0, {MOST_SECONDS:,} at most")
    return seconds


def run_migrate(options: argparse.Namespace) -> int:
    """`migrate`: applies what is missing."""
    settings = OwnersSettings.read()
    logs.set_up(settings.log_format)
    passwords = {
        "sandbox_controller": settings.sandbox_controller_password,
        "sandbox_requester": settings.sandbox_requester_password,
    }
    steps = migrate(settings.database_url, passwords, settings.sandbox_retention_seconds)
    terminal.show(f"migrate: {steps} applied" if steps else "migrate: nothing to do")
    if told := settle_identity(settings.database_url, options.whose):
        terminal.say(f"migrate: {told}")
    return 0


def run(options: argparse.Namespace) -> int:
    """`run`: the controller, until SIGTERM or SIGINT."""
    settings = Settings.read()
    logs.set_up(settings.log_format)
    asyncio.run(serve(settings, connect(settings)))
    return 0


def run_drain(options: argparse.Namespace) -> int:
    """`drain`: ends everything."""
    settings = Settings.read()
    logs.set_up(settings.log_format)
    return asyncio.run(_drain(settings, options.timeout))


def run_give_up(options: argparse.Namespace) -> int:
    """`give-up`: settles all that an engine without a controller is owed."""
    settings = Settings.read()
    logs.set_up(settings.log_format)
    done = asyncio.run(_give_up(settings, options.engine))
    terminal.show("give-up: " + ", ".join(f"{count} {what}" for what, count in sorted(done.items())))
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """`demo`: with packages that nothing else needs."""
    try:
        from controller.demo.show import demo

        return demo(options.backend)
    except ModuleNotFoundError as error:
        raise SandboxError(f"{error.name} is missing: `make setup`, or pip install 'ci-fixer-sandbox[demo]'") from error


async def serve(settings: Settings, backend: Backend) -> None:
    """Runs a controller on this backend until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        writes = await _writes(settings.database_url, stop)
    except BaseException:
        await backend.close()
        raise
    if not writes:
        await backend.close()
        return
    async with assemble(settings, backend) as (controller, queue, http):
        if settings.sandbox_retention_seconds is not None:
            await retain(settings.database_url, settings.sandbox_retention_seconds)
        server, port = await http.serve(settings.http_port)
        log.info("%s runs sandboxes on %s, http on port %d", queue.me, queue.engine, port)
        listener = asyncio.create_task(listen(settings.database_url, "sandbox_wake", controller.wake))
        try:
            await controller.run(stop)
        finally:
            log.info("stopped: what runs goes on, and the next controller finds it")
            await cancel([listener])
            await server.cleanup()


async def _writes(url: str, stop: asyncio.Event) -> bool:
    """Waits while the database only reads, as a controller does that runs already; returns False where `stop` came."""
    while not stop.is_set():
        try:
            await check_schema(url)
        except OnlyReads as error:
            log.warning("%s, waiting for it", error)
        else:
            return True
        with suppress(TimeoutError):
            async with asyncio.timeout(READS_SECONDS):
                await stop.wait()
    return False


async def _drain(settings: Settings, timeout: float) -> int:
    backend = connect(settings)
    async with assemble(settings, backend) as (controller, queue, _):
        return await drain(controller, queue, backend, timeout)


async def _give_up(settings: Settings, engine: str) -> Counter[str]:
    await check_schema(settings.database_url)
    me = _name()
    async with open_pool(settings.database_url, me) as pool:
        queue = Queue(pool, me, settings.sandbox_output_bytes)
        registry = Registry(queue)
        if not await registry.visible():
            raise SettingsError(RENAMED)
        await registry.identify()  # the rows of a copy are the original's to settle
        attending = await registry.attending()
        for each in attending:
            if each.engine == engine and each.connected:
                raise SandboxError(f"the controller {each.name} of engine {engine} is connected: stop it first")
        abandoned = Abandoned(queue, Metrics(), settings.sandbox_start_deadline_seconds, 0.0)
        total: Counter[str] = Counter()
        while done := await abandoned.settle(engine, given_up=True):
            total += done
        if not total:
            known = ", ".join(sorted({each.engine for each in attending})) or "none"
            raise SandboxError(f"no sandbox is left on an engine {engine}; engines in the table: {known}")
        return total


@asynccontextmanager
async def assemble(settings: Settings, backend: Backend) -> AsyncIterator[tuple[Controller, Queue, Http]]:
    """A controller with its parts, on a database that fits and an engine that answers."""
    try:
        await check_schema(settings.database_url)
        await refuse_shared_sessions(settings.database_url)
        me = _name()
        async with open_pool(settings.database_url, me) as pool:
            queue = Queue(pool, me, settings.sandbox_output_bytes)
            registry = Registry(queue)
            installation, renewed = await registry.identify()
            if renewed:
                log.warning("this database is a copy: its installation has an id of its own now, %s", installation)
            queue.engine = await backend.open(installation)
            pace = pace_of(settings)
            presence = Presence(registry, backend, me, queue.engine, grace=pace.abandon, patience=pace.patience)
            async with presence.entered():
                controller = wire(settings, pace, queue, backend, presence, metrics := Metrics())
                yield controller, queue, Http(controller, queue, backend, metrics, settings.database_url)
    finally:
        await backend.close()


def _name() -> str:
    """Of this process's connections: Postgres keeps 63 bytes."""
    return f"{socket.gethostname()[:40]}/{os.getpid()}-{uuid4().hex[:6]}"


def pace_of(settings: Settings) -> Pace:
    """How much and how often, by the settings."""
    return Pace(
        max_running=settings.sandbox_max_running,
        poll=settings.sandbox_poll_seconds,
        lease=settings.sandbox_lease_seconds,
        launching=LAUNCHING[settings.sandbox_backend],
    )


def wire(
    settings: Settings, pace: Pace, queue: Queue, backend: Backend, presence: Presence, metrics: Metrics
) -> Controller:
    """A controller from its parts."""
    kind = settings.sandbox_backend
    lives = Lives(settings.sandbox_start_deadline_seconds)
    steps = Steps(queue, backend, lives, metrics, output_bytes=settings.sandbox_output_bytes, at_once=AT_ONCE[kind])
    carrier = Carrier(queue, steps, lives, metrics)
    comparison = Comparison(queue, backend, carrier, lives, metrics, presence, pace.grace)
    abandoned = Abandoned(queue, metrics, settings.sandbox_start_deadline_seconds, pace.abandon)
    return Controller(queue, backend, carrier, lives, comparison, presence, abandoned, metrics, pace)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
