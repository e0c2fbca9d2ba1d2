"""A fake engine for tests and measurements, with a fault for every verb. Nothing runs: commands are pretended."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto
from uuid import UUID, uuid4

from controller.errors import (
    BackendClosedError,
    ImagePullingError,
    RequestRejectedError,
    RunNotFoundError,
    TransientEngineError,
)
from controller.protocol.model import (
    Key,
    Launch,
    Listing,
    ObservedRun,
    Outcome,
    Output,
    Phase,
    Reason,
    State,
    exit_outcome,
    timeout_outcome,
)


class Fault(Enum):
    """What goes wrong with one call of one verb."""

    REPLY_LOST = auto()  # it was done, and no answer came
    REFUSED = auto()  # the engine will never do it
    BUSY = auto()  # not done: no room
    SLOW = auto()  # done, after a while
    GONE = auto()  # somebody else removes the run first
    AWAY = auto()  # the image has yet to be pulled
    DOUBLED = auto()  # the engine makes a second run of the same attempt


FaultFor = Callable[[str, Key], Fault | None]


@dataclass(slots=True)
class MemoryRun:
    """One pretended run."""

    seen: ObservedRun
    launch: Launch | None  # until it has ended
    output: bytes = b""
    timer: asyncio.TimerHandle | None = None


@dataclass
class MemoryEngine:
    """What would outlive a controller: the runs, and how often each attempt's command was started."""

    identity: str = field(default_factory=lambda: f"memory:{uuid4()}")
    runs: dict[str, MemoryRun] = field(default_factory=dict)  # by run_uid
    names: dict[Key, str] = field(default_factory=dict)  # the run that holds the attempt's name
    starts: Counter[Key] = field(default_factory=Counter)
    marks: set[str] = field(default_factory=set)  # of controllers
    watchers: set[asyncio.Queue[ObservedRun]] = field(default_factory=set)
    pulled: asyncio.Future[None] | None = None  # what attempts whose image is away wait for
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def make(self, launch: Launch) -> MemoryRun:
        """Another inert run of this attempt."""
        uid = f"{launch.key.name}/{next(self.numbers)}"
        run = self.runs[uid] = MemoryRun(ObservedRun(launch.key, uid, Phase.INERT), launch)
        self.tell(run.seen)
        return run

    def start(self, run: MemoryRun) -> None:
        """Starts the pretended command; one that was started before is left alone."""
        if run.seen.phase is not Phase.INERT or run.launch is None:
            return
        self.starts[run.seen.key] += 1
        run.seen = replace(run.seen, phase=Phase.RUNNING, started_at=datetime.now(UTC))
        self.tell(run.seen)
        seconds, code, run.output = pretend(run.launch.command)
        outcome = exit_outcome(code)
        if seconds > run.launch.timeout_seconds:
            seconds, outcome = run.launch.timeout_seconds, timeout_outcome(run.launch.timeout_seconds)
        run.timer = asyncio.get_running_loop().call_later(seconds, self.end, run, outcome)

    def end(self, run: MemoryRun, outcome: Outcome) -> None:
        """Ends a run that has started."""
        if run.seen.phase is Phase.RUNNING:
            if run.timer is not None:
                run.timer.cancel()
            run.launch = run.timer = None
            run.seen = replace(run.seen, phase=Phase.ENDED, outcome=outcome, ended_at=datetime.now(UTC))
            self.tell(run.seen)

    def remove(self, run: MemoryRun) -> None:
        """Removes a run, whatever it is doing."""
        if run.timer is not None:
            run.timer.cancel()
        self.runs.pop(run.seen.run_uid, None)
        if self.names.get(run.seen.key) == run.seen.run_uid:
            del self.names[run.seen.key]
        self.tell(replace(run.seen, phase=Phase.GONE, outcome=None))

    def tell(self, seen: ObservedRun) -> None:
        """Tells every watcher."""
        for watcher in self.watchers:
            watcher.put_nowait(seen)


class MemoryMarks:
    """The marks on a MemoryEngine."""

    advice = "give the copy another identity"

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine

    async def names(self) -> set[str]:
        """Whose are there."""
        return set(self._engine.marks)

    async def leave(self, controller: str) -> None:
        """Leaves one."""
        self._engine.marks.add(controller)

    async def remove(self, controller: str) -> None:
        """Takes it away."""
        self._engine.marks.discard(controller)


class MemoryBackend:
    """The interface over a MemoryEngine, each call perhaps with a fault."""

    at_once, launching = 1000, 2000

    def __init__(
        self, engine: MemoryEngine | None = None, fault: FaultFor = lambda verb, key: None, list_seconds: float = 5.0
    ) -> None:
        self.engine = engine or MemoryEngine()
        self.marks = MemoryMarks(self.engine)
        self.fault = fault
        self._list_seconds = list_seconds
        self._open = False

    async def open(self, installation: UUID) -> str:
        """This engine's identity."""
        self._open = True
        return self.engine.identity

    async def ping(self) -> None:
        """It always answers."""
        if not self._open:
            raise BackendClosedError

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun | None:
        """Makes a pretended run, or finds it."""
        fault = await self._before("create", launch.key)
        uid = self.engine.names.get(launch.key)
        if uid is None:
            uid = self.engine.names[launch.key] = self.engine.make(launch).seen.run_uid
        if fault is Fault.DOUBLED:
            self.engine.make(launch)
        self._after(fault)
        return self.engine.runs[uid].seen

    async def release(self, key: Key, run_uid: str) -> None:
        """Starts it."""
        fault = await self._before("release", key)
        run = self.engine.runs.get(run_uid)
        if run is None:
            raise RunNotFoundError
        self.engine.start(run)
        self._after(fault)

    async def observe(self) -> AsyncIterator[Listing | ObservedRun]:
        """A listing, then changes; a listing again every few seconds."""
        watcher: asyncio.Queue[ObservedRun] = asyncio.Queue()
        self.engine.watchers.add(watcher)
        loop = asyncio.get_running_loop()
        try:
            while True:
                yield Listing(tuple(run.seen for run in self.engine.runs.values()), loop.time())
                due = loop.time() + self._list_seconds
                while (left := due - loop.time()) > 0:
                    try:
                        async with asyncio.timeout(left):
                            seen = await watcher.get()
                    except TimeoutError:
                        break
                    yield seen
        finally:
            self.engine.watchers.discard(watcher)

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        """What the pretended command wrote."""
        fault = await self._before("output", key)
        run = self.engine.runs.get(run_uid)
        if run is None:
            raise RunNotFoundError(f"the engine has no run {run_uid}")
        self._after(fault)
        return Output(run.output[-limit:], len(run.output) > limit)

    async def kill(self, key: Key, run_uid: str) -> None:
        """Ends it, leaving its outcome."""
        fault = await self._before("kill", key)
        run = self.engine.runs.get(run_uid)
        if run is not None:
            self.engine.end(run, Outcome(State.FAILED, Reason.KILLED, "killed from outside", 137))
        self._after(fault)

    async def delete(self, key: Key, run_uid: str | None) -> None:
        """Removes it."""
        fault = await self._before("delete", key)
        if run_uid is not None:
            runs = [self.engine.runs[run_uid]] if run_uid in self.engine.runs else []
        else:
            runs = [run for run in self.engine.runs.values() if run.seen.key == key]
        for run in runs:
            self.engine.remove(run)
        self._after(fault)

    async def close(self) -> None:
        """Nothing to let go of."""
        self._open = False

    async def _before(self, verb: str, key: Key) -> Fault | None:
        fault = self.fault(verb, key)
        match fault:
            case Fault.REFUSED if verb in ("create", "release"):
                raise RequestRejectedError(Reason.INVALID_REQUEST, f"the engine refuses to {verb} {key.name}")
            case Fault.AWAY:
                raise ImagePullingError("the image is being pulled", self.engine.pulled)
            case Fault.BUSY | Fault.REFUSED:
                raise TransientEngineError(f"the engine has no room to {verb}")
            case Fault.GONE:
                for run in [run for run in self.engine.runs.values() if run.seen.key == key]:
                    self.engine.remove(run)
            case Fault.SLOW:
                await asyncio.sleep(0.05)
        return fault

    def _after(self, fault: Fault | None) -> None:
        if fault is Fault.REPLY_LOST:
            raise TransientEngineError("the engine gave no answer")


def pretend(command: str) -> tuple[float, int, bytes]:
    """What `echo`, `sleep` and `exit`, one after the other, would do: seconds, exit code, output."""
    seconds, output = 0.0, b""
    for part in re.split(r"[;\n]|&&", command):
        match part.split():
            case ["sleep", length]:
                seconds += float(length)
            case ["echo", *words]:
                output += " ".join(words).strip("'\"").encode() + b"\n"
            case ["exit", code]:
                return seconds, int(code), output
    return seconds, 0, output
