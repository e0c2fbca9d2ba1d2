"""`submit`: inserts one sandbox, waits for its end, and exits with its exit code."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

from controller import terminal
from controller.errors import SandboxError
from controller.protocol.model import State
from controller.requester.client import Client, Progress, RequestRefused
from controller.requester.explain import START
from controller.requester.interrupts import Interrupts, look

# Exit codes; every other one is the command's own. If a signal cancelled the sandbox: 128 + the signal's number.
REFUSED, TIMED_OUT, UNKNOWN = 2, 124, 125
NUMBERS = {  # option: column, unit, default
    "--timeout": ("timeout_seconds", "SECONDS", "600"),
    "--cpu": ("cpu_millis", "MILLIS", "1000: one core"),
    "--memory": ("memory_mib", "MIB", "1024"),
    "--disk": ("disk_mib", "MIB", "1024"),
    "--priority": ("priority", "N", "0; higher ones come first"),
    "--attempts": ("max_attempts", "N", "1"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `submit`. The column of an omitted option has the table's default."""
    parser.usage = "python -m controller submit [options] -- COMMAND ..."
    for option, (column, unit, default) in NUMBERS.items():
        parser.add_argument(option, dest=column, type=number, metavar=unit, help=f"{column} (default: {default})")
    parser.add_argument("--image", help="container image (default: the controller's)")
    parser.add_argument("--env", type=_variable, action="append", metavar="K=V", help="a variable; may be repeated")
    parser.add_argument("--network", choices=("none", "egress"), help="the network that it may reach (default: none)")
    parser.add_argument("--tenant", help="the tenant whose limits and turns apply (default: default)")
    parser.add_argument("--raw", action="store_true", help="on a terminal too, print the output byte for byte")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="a shell line, or a program and its arguments")


def submit(options: argparse.Namespace) -> int:
    """Inserts, waits, prints the output; returns the exit code."""
    url, sandbox_id = os.environ.get("DATABASE_URL", ""), uuid4()
    interrupts = Interrupts(url, sandbox_id)
    try:
        with closing(Client(url)) as client:
            interrupts.asking()
            client.submit({"id": sandbox_id, **request(options)})
            interrupts.asked()
            try:
                end = follow(client, sandbox_id, interrupts)
                output, truncated = client.output(sandbox_id)
            except SandboxError as error:
                raise SandboxError(f"{error}; {look(sandbox_id)}") from error
            interrupts.over()
            terminal.write_output(output, raw=options.raw)
    except RequestRefused as error:
        terminal.say(f"submit: the database refuses this request: {error}")
        return REFUSED
    except SandboxError as error:
        terminal.say(f"submit: {error}")
        return UNKNOWN
    if truncated and output:
        _say(end, f"the beginning of its output is missing; these are its last {len(output.encode()):,} bytes")
    _say(end, *filter(None, (end.reason, end.message)))
    return exit_code(end, interrupts.number or signal.SIGINT)


def request(options: argparse.Namespace) -> dict[str, Any]:
    """The request's columns, from the options."""
    names = ("image", "env", "network", "tenant", *(column for column, _, _ in NUMBERS.values()))
    columns = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "env" in columns:
        columns["env"] = dict(columns["env"])
    words = options.command  # a single one is a shell line; several are a program and its arguments
    return columns | {"command": words[0] if len(words) == 1 else shlex.join(words)}


def number(text: str) -> int:
    """Parses a whole number. One too large even for Postgres becomes its largest, which the column's rule refuses."""
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    size = min(int(text.lstrip("+-0")[:20] or "0"), 2**63 - 1)
    return -size if text[0] == "-" else size


def exit_code(end: Progress, number: int) -> int:
    """The exit code of `submit`. `number`: the signal by which a cancelled sandbox was cancelled."""
    known = UNKNOWN if end.exit_code is None else end.exit_code
    return {State.TIMED_OUT: TIMED_OUT, State.CANCELLED: 128 + number}.get(end.state, known)


def follow(client: Client, sandbox_id: UUID, interrupts: Interrupts) -> Progress:
    """Reports progress on stderr until the sandbox has ended, or is cancelled without a controller to record it."""
    told, hinted = None, False
    for now in client.follow(sandbox_id):
        if now.state.terminal:
            break
        if told != (stands := (now.state, now.attempt, now.waiting)):
            about = sandbox_id if told is None else f"attempt {now.attempt}" if now.attempt > 1 else None
            _say(now, *filter(None, (about, now.waiting)))
            told = stands
        if now.controllers == 0 and now.state is State.QUEUED and interrupts.cancelled:
            _say(now, "cancelled; no controller is connected, so it will never start")
            interrupts.leave()
        if now.controllers is not None and not now.resting and not hinted:
            hinted = True
            none = f"no controller is connected to this database; {START}"
            _say(now, f"there is no room for it yet; {look(sandbox_id)}" if now.controllers else none)
    return now


def _say(now: Progress, *about: object) -> None:
    terminal.say(f"{now.seconds:7.1f} s  {now.state:<9}  {': '.join(map(str, about))}".rstrip())


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not K=V")
    return name, value
