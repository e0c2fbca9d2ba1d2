"""The demo's requests and their expected results. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from controller.requester.client import Progress

MIB = 1 << 20
TRICKY = "$HOME `id` $(id) $$ $(X) \"'\\ ; & | > * ? ~ ! # % {} é\t\n end "


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and its expected result."""

    asked: str
    command: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    ends: tuple[str, str] = ("succeeded", "Completed")  # state and reason
    exit_code: int | None = 0
    output: str | None = None  # None: any
    truncated: bool = False
    attempts: int = 1
    cancel_when: str = ""  # cancelled when its row is in this state
    copies: int = 1  # how often it is inserted; only one insert must create a row


@dataclass(slots=True)
class DemoRun:
    """The progress of a case."""

    case: Case
    id: UUID | None = None
    now: Progress | None = None  # None if it was refused
    refusal: str = ""
    faults: list[str] = field(default_factory=list)
    judged: bool = False

    @property
    def ends(self) -> tuple[str, str]:
        """State and reason."""
        if self.now:
            return self.now.state, self.now.reason or ""
        return "refused" if self.refusal else "", self.refusal

    @property
    def cells(self) -> list[str]:
        """Its line in the table."""
        code = "" if self.now is None or self.now.exit_code is None else self.now.exit_code
        took = f"{self.now.seconds:.1f} s" if self.now else ""
        why = self.ends[1] or (self.now and self.now.waiting) or ""
        return [
            self.case.asked,
            self.ends[0],
            f"{code:>4}",
            why,
            f"{took:>6}",
            ["yes", "NO"][bool(self.faults)] * self.judged,
        ]


def cases(retried: UUID) -> list[Case]:
    """The twelve cases. `retried`: the id of the sandbox whose second attempt succeeds."""
    script = 'for n in 1 2 3; do echo "step $n"; done; echo "and stderr" >&2'
    retry = f'case "$(uname -n) $PWD" in *{retried}-2*) echo ready ;; *) echo not yet; exit 1 ;; esac'
    many, line = f"yes fifteen letters | head -c {5 * MIB}", "fifteen letters\n"
    failed, timed_out, cancelled = (
        ("failed", "NonZeroExit"),
        ("timed_out", "DeadlineExceeded"),
        ("cancelled", "Cancelled"),
    )
    return [
        Case("a retry: the 2nd try succeeds", retry, {"id": retried, "max_attempts": 2}, output="ready\n", attempts=2),
        Case("a script with output", script, output="step 1\nstep 2\nstep 3\nand stderr\n"),
        Case("exit 3", "echo oh; exit 3", ends=failed, exit_code=3, output="oh\n"),
        Case("a timeout after 1 s", "echo begun; sleep 60", {"timeout_seconds": 1}, timed_out, None, "begun\n"),
        Case("a cancel while it runs", "sleep 60", ends=cancelled, exit_code=None, cancel_when="running"),
        Case("a cancel while it is queued", "echo never", {}, cancelled, None, "", cancel_when="queued"),
        Case("5 MiB of output, 1 MiB is kept", many, output=line * (MIB // len(line)), truncated=True),
        Case("output that is not UTF-8", r"printf 'caf\303\251 \377\000 end'", output="caf\u00e9 \ufffd\ufffd end"),
        Case("the same idempotency_key twice", "echo once", {"idempotency_key": "demo"}, output="once\n", copies=2),
        Case("cpu_millis = 0", "true", {"cpu_millis": 0}, ("refused", "cpu_millis must be 1 to 256,000"), None),
        Case("env full of metacharacters", 'printf %s "$TRICKY"', {"env": {"TRICKY": TRICKY}}, output=TRICKY),
        Case("kill -KILL of itself", "kill -KILL $$", ends=failed, exit_code=137, output=""),
    ]


def faults(run: DemoRun, output: str, truncated: bool) -> list[str]:
    """How an ended run differs from what its case expects."""
    case = run.case
    found = {
        "state and reason": (run.ends, case.ends),
        "exit code": (run.now and run.now.exit_code, case.exit_code),
        "attempts": (run.now.attempt if run.now else 1, case.attempts),
        "output": (output, output if case.output is None else case.output),
        "output_truncated": (truncated, case.truncated),
    }
    return [
        f"{name}: expected {should!r:.60}, got {is_!r:.60}" for name, (is_, should) in found.items() if is_ != should
    ]
