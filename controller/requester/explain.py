"""`explain`: one sandbox on one screen, built by pure functions from what the database has."""

from __future__ import annotations

import argparse
import os
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, timedelta
from itertools import accumulate
from textwrap import wrap
from typing import Any
from unicodedata import east_asian_width
from uuid import UUID

from controller import terminal
from controller.errors import SandboxError
from controller.protocol.model import State
from controller.protocol.text import encodable, visible
from controller.requester.client import Client

Columns = Mapping[str, Any]

WIDTH = 100  # columns
STEPS, ATTEMPTS = 11, 5  # the most lines of each, so that the screen has at most 40
LATE = timedelta(seconds=-40)  # this long after a timeout, TERM, KILL and recording are over
NOT_OURS = (
    "nothing: this state was written by hand, so no controller will end it. The database's owner may delete the row."
)
START = "start one with `python -m controller run`"


def explain(options: argparse.Namespace) -> int:
    """Prints the screen about the sandbox of that id."""
    try:
        sandbox_id = UUID(options.id)
    except ValueError as error:
        raise SandboxError(f"{options.id!r} is not the id of a sandbox, which is a UUID") from error
    with closing(Client(os.environ.get("DATABASE_URL", ""))) as client:
        rows, events, attempts = client.facts(sandbox_id)
    if not rows:
        raise SandboxError(f"there is no sandbox {sandbox_id}")
    terminal.show(*screen(rows[0], events, attempts, sys.stdout.encoding))
    return 0


def screen(row: Columns, events: Sequence[Columns], attempts: Sequence[Columns], encoding: str = "utf-8") -> list[str]:
    """At most 40 lines of at most 100 columns, whatever the row contains, in characters of that encoding."""
    sections = {
        f"sandbox {row['id']}": _fields(row),
        "waits for": [line for each in waits_for(row) for line in _wrapped(each, WIDTH - 2)],
        "timeline (UTC)": _few(_timeline(row, events), STEPS),
        "ended attempts": _few([_attempt(each) for each in attempts], ATTEMPTS) or ["none"],
    }
    lines = [line for title, body in sections.items() for line in ["", title, *(f"  {each}" for each in body)]]
    cut = encodable("…", encoding)
    return [clipped(encodable(visible(line), encoding), cut) for line in lines[1:]]


def waits_for(row: Columns) -> list[str]:
    """What the sandbox waits for, as exactly as the database shows."""
    state = State(row["state"])
    if state.terminal:
        return ["nothing: it has ended" if row["cleaned_at"] else "nothing but the removal of its run from the engine"]
    asked = row["cancel_requested_at"]
    lines = [f"its end: a cancel was requested {span(row['now'] - asked)} ago"] if asked else []
    if not asked or state is not State.QUEUED:
        lines += {State.QUEUED: _queued, State.LAUNCHING: _launching}.get(state, _running)(row)
        lines += [f"because: {row['waiting']}"] if row["waiting"] else []
    return lines + ([] if row["controllers"] else [f"a controller: none is connected to this database; {START}"])


def _queued(row: Columns) -> list[str]:
    if row["retry_at"]:
        return [f"attempt {row['attempt']}, due in {span(max(row['retry_at'] - row['now'], timedelta()))}"]
    most, busy = row["tenant_max_running"], row["tenant_busy"]
    limit = "no limit" if most is None else f"its limit: {most}, {'reached' if busy >= most else 'not reached'}"
    ahead = "1000 or more" if row["ahead"] >= 1000 else row["ahead"]
    return [
        f"its turn: {ahead} ahead of it in the queue of tenant {row['tenant']}, by priority, then age",
        f"room: {busy} of its tenant are launching or running ({limit}), and {row['busy']} of all tenants",
    ]


def _launching(row: Columns) -> list[str]:
    step = "its command to start" if row["run_uid"] else "its run to be created"
    if row["lease_until"] is None:
        return [step, NOT_OURS]
    left = row["lease_until"] - row["now"]
    if left < timedelta():
        return [f"{step}, but the lease ran out {span(left)} ago", _abandoned(row)]
    return [f"{step}, by {row['claimed_by']}, whose lease has {span(left)} left"]


def _running(row: Columns) -> list[str]:
    if row["started_at"] is None:
        return ["its end to be recorded", NOT_OURS]
    ran = row["now"] - row["started_at"]
    left = timedelta(seconds=row["timeout_seconds"]) - ran
    if left < LATE:
        return [f"its end to be recorded: its timeout was {span(left)} ago", _abandoned(row)]
    return [f"its command to end: it has run for {span(ran)} and may for {span(left)} more"]


def _abandoned(row: Columns) -> str:
    return f"a controller: none seems to be running for engine {row['engine']}"


def _fields(row: Columns) -> list[str]:
    code = f"exit code {row['exit_code']}" if row["exit_code"] is not None else None
    message = _wrapped(row["message"] or "", WIDTH - 12)
    fields = {
        "state": ", ".join(filter(None, (row["state"], row["reason"], code))),
        "message": message[0] if message else None,
        "": message[1] if len(message) > 1 else None,
        "command": row["command"],
        "image": row["image"],
        "env": ", ".join(row["env"]),  # never the values
        "limits": f"{row['cpu_millis']} millicores, {row['memory_mib']} MiB memory, {row['disk_mib']} MiB disk, "
        f"{row['timeout_seconds']} s, network {row['network']}",
        "requested": f"{row['created_at'].astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, tenant {row['tenant']}, "
        f"priority {row['priority']}, max_attempts {row['max_attempts']}",
        "engine": row["engine"],
    }
    return [f"{name:<9} {value}" for name, value in fields.items() if value]


def _timeline(row: Columns, events: Sequence[Columns]) -> list[str]:
    steps = [(row["created_at"], 1, "inserted", "")]
    steps += [(each["at"], each["attempt"], each["step"], each["detail"] or "") for each in events]
    if row["cancel_requested_at"]:
        steps.append((row["cancel_requested_at"], 1, "cancel requested", ""))
    steps.sort(key=lambda step: step[0])
    lines = []
    for (at, attempt, step, detail), before in zip(steps, [steps[0], *steps], strict=False):
        name = step if attempt == 1 else f"{step} ({attempt})"
        time = f"{at.astimezone(UTC):%H:%M:%S.%f}"[:-3]
        lines.append(f"{time}  +{span(at - before[0]):<11} {name:<17} {detail}".rstrip())
    return lines


def _attempt(row: Columns) -> str:
    code = "no exit code" if row["exit_code"] is None else f"exit code {row['exit_code']}"
    begun, ended = row["started_at"], row["ended_at"]
    ran = f"{begun.astimezone(UTC):%H:%M:%S} ran {span(ended - begun)}" if begun and ended else "times unknown"
    if row["bytes"] is None:
        output, cut = "output lost" if row["output_truncated"] else "no output", ""
    else:
        output, cut = f"{row['bytes']:,} bytes of output", ", truncated" if row["output_truncated"] else ""
    return f"{row['attempt']}  {row['state']} {row['reason']}, {code}, {ran}, {output}{cut}"


def span(time: timedelta) -> str:
    """A length of time in words, without its sign."""
    seconds = abs(time.total_seconds())
    for size, unit, part, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // part:.0f} {rest}"
    return f"{seconds:.3f} s" if seconds < 10 else f"{seconds:.1f} s"


def clipped(text: str, cut: str) -> str:
    """The text cut to the screen's width; `cut` marks where."""
    columns = list(accumulate(2 if east_asian_width(c) in "WF" else 1 for c in text))
    return text if not columns or columns[-1] <= WIDTH else text[: bisect_right(columns, WIDTH - len(cut))] + cut


def _wrapped(text: str, width: int) -> list[str]:
    return wrap(visible(text), width, max_lines=2, placeholder=" …")


def _few(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[:2], f"… {len(lines) - most + 1} more …", *lines[3 - most :]]
