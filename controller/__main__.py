"""The command line."""

from __future__ import annotations

import argparse
import asyncio
import math
import signal
import sys
from collections.abc import Sequence

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports below, Ctrl-C would leave a trace

from controller import app, logs, terminal
from controller.backends.registry import create_backend
from controller.db.installation import settle_identity
from controller.db.migrate import migrate
from controller.errors import SandboxError
from controller.requester.explain import explain
from controller.requester.submit import add_options, submit
from controller.settings import OwnersSettings, Settings

MOST_SECONDS = 604_800  # the longest wait: the longest timeout of a sandbox


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
    parser = argparse.ArgumentParser(
        prog="python -m controller", description="Runs the sandboxes that rows of a Postgres table ask for."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="claim rows and run them").set_defaults(run=run)
    migrating = verbs.add_parser("migrate", help="bring the database to this version")
    whose = migrating.add_mutually_exclusive_group()
    for choice, meaning in {
        "copy": "this database is a copy and its original lives on: take a new id, and leave what runs to the original",
        "moved": "this database was moved and its original is gone: keep the id and what runs",
    }.items():
        whose.add_argument(f"--{choice}", dest="whose", action="store_const", const=choice, help=meaning)
    migrating.set_defaults(run=run_migrate)
    give_up = verbs.add_parser(
        "give-up",
        help="end or requeue every sandbox of an engine that is gone for good; if it lives, attempts can overlap",
    )
    give_up.add_argument(
        "engine", metavar="ENGINE", help="the engine's name, as `drain` and the column `engine` show it"
    )
    give_up.set_defaults(run=run_give_up)
    draining = verbs.add_parser("drain", help="cancel every sandbox, wait until all have ended, and clean up")
    draining.add_argument(
        "--timeout", type=_seconds, default=300.0, metavar="SECONDS", help="how long to wait (default: 300)"
    )
    draining.set_defaults(run=run_drain)
    asking = verbs.add_parser("submit", help="insert one sandbox, wait for its end, and exit with its exit code")
    add_options(asking)
    asking.set_defaults(run=submit)
    explaining = verbs.add_parser(
        "explain", help="show one sandbox: its state, what it waits for, its timeline and attempts"
    )
    explaining.add_argument("id", help="the id that its insert returned")
    explaining.set_defaults(run=explain)
    demo = verbs.add_parser("demo", help="run twelve real requests on a temporary Postgres")
    demo.add_argument(
        "--backend", choices=("docker", "process"), help="default: docker if an engine answers, else process"
    )
    demo.set_defaults(run=run_demo)
    return parser


def _seconds(text: str) -> float:
    """Parses an argument that is a length of time, in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MOST_SECONDS:  # false for `nan` too
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is not a number of seconds above 0 and at most {MOST_SECONDS:,}"
        )
    return seconds


def run_migrate(options: argparse.Namespace) -> int:
    """`migrate`: applies the missing migrations."""
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
    asyncio.run(app.serve(settings, create_backend(settings)))
    return 0


def run_drain(options: argparse.Namespace) -> int:
    """`drain`: cancels every sandbox, and waits until nothing is left."""
    settings = Settings.read()
    logs.set_up(settings.log_format)
    return asyncio.run(app.drain(settings, create_backend(settings), options.timeout))


def run_give_up(options: argparse.Namespace) -> int:
    """`give-up`: settles every row of an engine that is gone for good."""
    settings = Settings.read()
    logs.set_up(settings.log_format)
    done = asyncio.run(app.give_up(settings, options.engine))
    terminal.show("give-up: " + ", ".join(f"{count} {what}" for what, count in sorted(done.items())))
    return 0


def run_demo(options: argparse.Namespace) -> int:
    """`demo`: imports packages that nothing else needs."""
    try:
        from controller.demo.show import demo

        return demo(options.backend)
    except ModuleNotFoundError as error:
        raise SandboxError(f"{error.name} is missing: `make setup`, or pip install 'ci-fixer-sandbox[demo]'") from error


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
