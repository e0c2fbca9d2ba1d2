"""`submit`: asks for one sandbox, waits for it, and ends as its command did."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from contextlib import closing
from typing import Any
from uuid import UUID

from controller.errors import SandboxError
from controller.model import State
from controller.queue.client import Client, Progress, RequestRefused
from controller.tools.explain import START, visible

REFUSED, TIMED_OUT, UNKNOWN, CANCELLED = 2, 124, 125, 130  # exit codes; every other one is the command's own
NUMBERS = {  # option: column, unit, default
    "--timeout": ("timeout_seconds", "SECONDS", "600"),
    "--cpu": ("cpu_millis", "MILLIS", "1000: one core"),
    "--memory": ("memory_mib", "MIB", "1024"),
    "--disk": ("disk_mib", "MIB", "1024"),
    "--priority": ("priority", "N", "0; higher ones come first"),
    "--attempts": ("max_attempts", "N", "1"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `submit` takes. An option left out leaves its column to the table's default."""
    parser.usage = "python -m controller submit [options] -- COMMAND ..."
    for option, (column, unit, default) in NUMBERS.items():
        parser.add_argument(option, dest=column, type=number, metavar=unit, help=f"{column} (default: {default})")
    parser.add_argument("--image", help="container image (default: the controller's)")
    parser.add_argument("--env", type=_variable, action="append", metavar="K=V", help="a variable; may be repeated")
    parser.add_argument("--network", choices=("none", "egress"), help="what it may reach (default: none)")
    parser.add_argument("--tenant", help="whom it counts for (default: default)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="a shell line, or a program and its arguments")


def submit(options: argparse.Namespace) -> int:
    """Inserts, waits, prints the output; returns the exit code."""
    try:
        with closing(Client(os.environ.get("DATABASE_URL", ""))) as client:
            signal.signal(signal.SIGINT, interrupts := Interrupts())
            sandbox_id = client.submit(request(options))
            assert sandbox_id is not None  # without an idempotency_key nothing stands in its way
            return _stay(client, sandbox_id, interrupts)
    except RequestRefused as error:
        print(f"submit: the database refuses this request: {visible(str(error))}", file=sys.stderr)
        return REFUSED
    except SandboxError as error:
        print(f"submit: {visible(str(error))}", file=sys.stderr)
        return UNKNOWN


class Interrupts:
    """Counts Ctrl-C; the second leaves."""

    count = 0

    def __call__(self, *_: object) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt


def request(options: argparse.Namespace) -> dict[str, Any]:
    """The columns that the options name."""
    names = ("image", "env", "network", "tenant", *(column for column, _, _ in NUMBERS.values()))
    columns = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "env" in columns:
        columns["env"] = dict(columns["env"])
    words = options.command  # one is a shell line as it is; several are a program and its arguments
    return columns | {"command": words[0] if len(words) == 1 else shlex.join(words)}


def number(text: str) -> int:
    """One too large even for Postgres becomes its largest, so that the column's own rule refuses it."""
    return max(-(2**63), min(int(text), 2**63 - 1))


def exit_code(end: Progress) -> int:
    """What `submit` ends with."""
    known = UNKNOWN if end.exit_code is None else end.exit_code
    return {State.TIMED_OUT: TIMED_OUT, State.CANCELLED: CANCELLED}.get(end.state, known)


def _stay(client: Client, sandbox_id: UUID, interrupts: Interrupts) -> int:
    try:
        end = follow(client, sandbox_id, interrupts)
        output, truncated = client.output(sandbox_id)
    except SandboxError as error:
        raise SandboxError(f"{error}; {_look(sandbox_id)}") from error
    except KeyboardInterrupt:
        print(f"\nsubmit: left before its end; {_look(sandbox_id)}", file=sys.stderr)
        return CANCELLED
    _print_output(output)
    if truncated:
        _say(end, f"the beginning of its output is missing, its last {len(output.encode()):,} bytes are here")
    _say(end, *filter(None, (end.reason, end.message)))
    return exit_code(end)


def follow(client: Client, sandbox_id: UUID, interrupts: Interrupts) -> Progress:
    """Tells on stderr what is new until it has ended; the first Ctrl-C asks for its cancellation."""
    told, cancelled, hinted = None, False, False
    for now in client.follow(sandbox_id):
        if now.state.terminal:
            break
        if told != (stands := (now.state, now.attempt, now.waiting)):
            about = sandbox_id if told is None else f"attempt {now.attempt}" if now.attempt > 1 else None
            _say(now, *filter(None, (about, now.waiting)))
            told = stands
        if interrupts.count and not cancelled:
            client.cancel(sandbox_id)
            cancelled = True
            print(file=sys.stderr)  # the terminal's ^C stands there
            _say(now, "asked to cancel it, waiting for its end; Ctrl-C again leaves at once")
        if now.controllers is not None and not now.resting and not hinted:
            hinted = True
            none = f"no controller is connected to this database; {START}"
            _say(now, f"there is no room for it yet; {_look(sandbox_id)}" if now.controllers else none)
    return now


def _look(sandbox_id: UUID) -> str:
    return f"see: python -m controller explain {sandbox_id}"


def _say(now: Progress, *about: object) -> None:
    line = f"{now.seconds:7.1f} s  {now.state:<9}  {': '.join(map(str, about))}"
    print(visible(line).rstrip(), file=sys.stderr, flush=True)


def _print_output(output: str) -> None:
    """Byte for byte; a terminal's next line begins on one of its own."""
    try:
        sys.stdout.buffer.write(output.encode())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if output and not output.endswith("\n") and sys.stdout.isatty():
        print(file=sys.stderr)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V")
    return name, value
