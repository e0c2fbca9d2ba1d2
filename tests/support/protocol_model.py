"""A small model of the protocol's world: one row, one engine, and two controllers that are the real ones.

What a controller believes is the real TrackedSandbox, and what it does next is the real Worker's `reconcile`: only the
table and the engine are pretended, each request an atomic change of the world. A controller acts on what it last saw,
however long ago; a lease runs out at any moment; replies get lost, controllers crash, the engine doubles and loses
runs. A controller of another engine settles the row by the real `abandon`, since it saw no controller of this engine
connected: these may be cut off from the table, and go on. Every order of all that is explored, up to a number of
faults.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple, cast
from uuid import UUID

from controller.db.writes import Ended, MarkCleaned, SetWaiting, WriteBind, WriteRunning
from controller.errors import DatabaseUnavailableError, RunNotFoundError, TransientEngineError
from controller.metrics import Metrics
from controller.protocol import actions
from controller.protocol.decide import abandon
from controller.protocol.model import Key, Launch, ObservedRun, Outcome, Output, Phase, Reason, Row, State, exit_outcome
from controller.reconcile.config import ControllerConfig
from controller.reconcile.tracker import TrackedSandbox, Tracker
from controller.reconcile.worker import Worker

ID = UUID(int=1)
KILLED = Outcome(State.FAILED, Reason.KILLED, "killed", 137)
ACTIVE = (State.LAUNCHING, State.RUNNING)
NOW = 0.0  # of every controller's clock
START_DEADLINE = {False: float("inf"), True: -1.0}  # by whether it is past
BEYOND_EVERY_TIMEOUT = 1e9  # seconds
CONFIG = ControllerConfig(
    max_running=1, max_launching=1, engine_calls=1, output_bytes=1, start_deadline=0.0, lease=1.0, poll=1.0
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules that the promises rest on; tests switch them off to see that the model has teeth."""

    tracked: type[TrackedSandbox] = TrackedSandbox
    fenced: bool = True  # under another epoch, no attempt can be called never started
    marked: bool = True  # the engine keeps that a controller asked for a run's end
    proven: bool = True  # without its engine, only a row that is not bound counts as never started


class Broken(AssertionError):
    """A promise was broken."""


WORDS_AND_TIMES = ("may_exist", "waiting", "written_waiting", "output_deadline")


class Hand:
    """What one controller believes, as values that compare: the fields of a TrackedSandbox, but for those that only
    concern words and times. There is one object for equal beliefs, so they are compared by identity."""

    NAMES = tuple(each.name for each in fields(TrackedSandbox) if each.name not in WORDS_AND_TIMES)
    __slots__ = ("key", "number", "row", "runs")

    def __init__(self, key: tuple[Any, ...], number: int) -> None:
        self.key, self.number = key, number
        self.row: Row = key[self.NAMES.index("row")]
        self.runs: tuple[ObservedRun, ...] = key[self.NAMES.index("runs")]

    @property
    def mine(self) -> bool:
        """Whether it believes that it holds the lease."""
        return bool(self.key[self.NAMES.index("lease_end")] > NOW)


class World(NamedTuple):
    """Everything."""

    row: Row
    cleaned: bool = False
    runs: tuple[ObservedRun, ...] = ()
    hands: tuple[Hand | None, Hand | None] = (None, None)
    made: int = 0
    starts: tuple[int, ...] = ()  # the attempt of each start of a command
    overdue: bool = False
    faults: int = 0
    loose: frozenset[str] = frozenset()  # bound runs whose row was settled without their engine

    @property
    def over(self) -> bool:
        return self.cleaned and not self.runs and self.hands == (None, None)


@dataclass
class Requests:
    """Table and engine as the real Worker asks them. The reply to request number `lost` does not come."""

    row: Row
    cleaned: bool
    runs: tuple[ObservedRun, ...]
    made: int
    fenced: bool
    lost: int | None = None
    answered: int = 0  # requests that change something
    started: ObservedRun | None = None
    outcome: Outcome | None = None

    async def bind(self, item: WriteBind) -> bool:
        row = self.row
        fits = (row.attempt, row.epoch) == (item.key.attempt, item.epoch) and row.run_uid in (None, item.run_uid)
        if fits := fits and row.state is State.LAUNCHING and not row.cancelled:
            self.row = replace(row, run_uid=item.run_uid)
        return self._written(fits)

    async def mark_running(self, item: WriteRunning) -> bool:
        row = self.row
        fits = (row.attempt, row.run_uid, row.state) == (item.key.attempt, item.run_uid, State.LAUNCHING)
        if fits:
            self.row = replace(row, state=State.RUNNING, started_age=NOW)
        return self._written(fits)

    async def record(self, item: Ended) -> bool:
        row = self.row
        fits = self._is_active(item) and (row.run_uid is not None or item.epoch in (None, row.epoch))
        if fits:
            self.outcome = item.outcome
            self.row = replace(row, state=item.outcome.state)
        return self._written(fits)

    async def requeue(self, item: Ended) -> bool:
        row = self.row
        fits = self._is_active(item) and not row.cancelled and (item.epoch in (None, row.epoch) or not self.fenced)
        if fits:
            self.row = queued_again(row, counted=item.counted)
        return self._written(fits)

    async def mark_cleaned(self, item: MarkCleaned) -> bool:
        self.cleaned = self.cleaned or self.row.state.terminal
        return self._written(self.cleaned)

    async def set_waiting(self, item: SetWaiting) -> bool:
        return True

    async def rows(self, ids: list[UUID]) -> dict[UUID, Row]:
        return {ID: self.row}

    async def create(self, launch: Launch, *, look: bool) -> ObservedRun:
        run = next((run for run in self.runs if run.key == launch.key), None)
        if run is None:
            run = ObservedRun(launch.key, str(self.made), Phase.INERT)
            self.runs, self.made = (*self.runs, run), self.made + 1
        self._done()
        return run

    async def release(self, key: Key, run_uid: str) -> None:
        run = next((run for run in self.runs if run.run_uid == run_uid), None)
        if run is None:
            raise RunNotFoundError
        if run.phase is Phase.INERT:
            self.started = run
            self.runs = with_run(self.runs, replace(run, phase=Phase.RUNNING))
        self._done()

    async def kill(self, key: Key, run_uid: str) -> None:
        for run in self.runs:
            if run.run_uid == run_uid and run.phase is Phase.RUNNING:
                self.runs = with_run(self.runs, replace(run, ending=True))
        self._done()

    async def delete(self, key: Key, run_uid: str | None) -> None:
        self.runs = tuple(run for run in self.runs if run.key != key or run_uid not in (None, run.run_uid))
        self._done()

    async def output(self, key: Key, run_uid: str, limit: int) -> Output:
        return Output(b"", False)

    def _is_active(self, item: Ended) -> bool:
        row = self.row
        return (row.attempt, row.run_uid) == (item.key.attempt, item.run_uid) and row.state in ACTIVE

    def _written(self, fits: bool) -> bool:
        if self._count() == self.lost:
            raise DatabaseUnavailableError
        return fits

    def _done(self) -> None:
        if self._count() == self.lost:
            raise TransientEngineError

    def _count(self) -> int:
        self.answered += 1
        return self.answered - 1


@dataclass(frozen=True, slots=True)
class Effect:
    """What one action of a controller did."""

    name: str
    hand: Hand | None
    row: Row
    cleaned: bool
    runs: tuple[ObservedRun, ...]
    made: int
    requests: int
    started: ObservedRun | None
    outcome: Outcome | None


@dataclass
class Model:
    """Every world that can be reached."""

    max_attempts: int
    faults: int
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        self._hands: dict[tuple[Any, ...], Hand] = {}
        self._effects: dict[tuple[Any, ...], Effect | None] = {}
        self._resynced: dict[tuple[Hand, int], Hand | None] = {}
        self._scenes: dict[tuple[Any, ...], int] = {}  # numbers of what requests can see of a world
        self._trackers = {late: Tracker(seconds, lambda: None, lambda: NOW) for late, seconds in START_DEADLINE.items()}
        self._requests = cast(Any, None)
        asked = cast(Any, self)
        self._workers = {
            late: Worker(asked, asked, tracker, Metrics(), CONFIG, lambda: None)
            for late, tracker in self._trackers.items()
        }

    def __getattr__(self, name: str) -> Any:  # the workers' table and engine are those of the world at hand
        return getattr(self._requests, name)

    def first(self) -> World:
        """A row that was just inserted."""
        return World(Row(ID, 1, 0, State.QUEUED, None, None, False, self.max_attempts, 0, 60, 1.0, None))

    def moves(self, world: World) -> Iterator[tuple[str, World]]:
        """Every world that may come next, and by what."""
        row, scene = world.row, self._scene(world)
        yield from _engine(world)
        if row.state is State.QUEUED and row.cancelled:  # cancel_queued, in SQL
            yield "cancel in SQL", world._replace(row=replace(row, state=State.CANCELLED), cleaned=True)
        for run in world.runs:
            if run.key.attempt < row.attempt or world.cleaned:
                yield "sweep", world._replace(runs=without(world.runs, run))
        for who, hand in enumerate(world.hands):
            if row.state is State.LAUNCHING and not _held(world):
                yield self._take_over(world, who)
            if hand is None:
                yield from self._take_up(world, who)
            else:
                yield "resync", self._resync(world, scene, who, hand)
                bound = next((run for run in hand.runs if run.run_uid == hand.row.run_uid), None)
                if bound is not None and bound.phase is not Phase.GONE and bound.run_uid not in uids(world):
                    yield "removal observed", self._observe(world, who, hand, replace(bound, phase=Phase.GONE))
                effect = self._act(world, scene, hand)
                if effect is not None:
                    yield effect.name, _put(self._after(world, effect), who, effect.hand)
        if world.faults < self.faults:
            yield from self._faults(world._replace(faults=world.faults + 1), scene)

    def _faults(self, world: World, scene: int) -> Iterator[tuple[str, World]]:
        row = world.row
        yield from self._abandon(world)
        if not row.cancelled and not row.state.terminal:
            yield "cancel", world._replace(row=replace(row, cancelled=True))
        if not world.overdue:
            yield "start deadline", world._replace(overdue=True)
        for run in world.runs:
            yield "vanish", world._replace(runs=without(world.runs, run))
            if run.phase is Phase.INERT:
                double = replace(run, run_uid=str(world.made))
                yield "double", world._replace(runs=(*world.runs, double), made=world.made + 1)
        for who, hand in enumerate(world.hands):
            if hand is not None:
                yield "crash", _put(world, who, None)
                for run in hand.runs:
                    if run.phase is Phase.STARTING:  # what the engine said before the release arrives after it
                        yield "old sight", self._observe(world, who, hand, replace(run, phase=Phase.INERT))
                whole = self._act(world, scene, hand)
                for number in range(whole.requests if whole is not None else 0):  # done, and no answer came
                    effect = self._act(world, scene, hand, lost=number)
                    assert effect is not None
                    yield f"{effect.name}, reply lost", _put(self._after(world, effect), who, effect.hand)
            if row.state is State.LAUNCHING and _held(world):  # a lease ran out, whatever its holder believes
                yield self._take_over(world, who)

    def _take_up(self, world: World, who: int) -> Iterator[tuple[str, World]]:
        row = world.row
        if row.state is State.QUEUED and not row.cancelled:
            claimed = replace(row, state=State.LAUNCHING, epoch=row.epoch + 1)
            yield "claim", _put(world._replace(row=claimed), who, self._claimed(claimed, None))
        elif row.state is not State.QUEUED and not world.cleaned:  # the resync finds a row that nobody tracks
            runs = {run.run_uid: self._seen(run) for run in world.runs if run.key == row.key}
            adopted = self.rules.tracked(row, NOW, runs=runs, missing=_is_missing(world))
            yield "adopt", _put(world, who, self._freeze(adopted))

    def _take_over(self, world: World, who: int) -> tuple[str, World]:
        taken = replace(world.row, epoch=world.row.epoch + 1)
        return "take over", _put(world._replace(row=taken), who, self._claimed(taken, world.hands[who]))

    def _claimed(self, row: Row, hand: Hand | None) -> Hand:
        known = hand is not None and hand.row.attempt == row.attempt
        tracked = self._thaw(hand) if hand is not None and known else self.rules.tracked(row, NOW)
        tracked.on_claimed(row, Launch(row.key, "true", 60), None, now=NOW, lease_end=NOW + 1, may_exist=True)
        return self._freeze(tracked)

    def _resync(self, world: World, scene: int, who: int, hand: Hand) -> World:
        """A whole list arrives, and is compared with the row."""
        key = (hand, scene)
        if key not in self._resynced:
            self._resynced[key] = self._compared(world, hand)
        return _put(world, who, self._resynced[key])

    def _compared(self, world: World, hand: Hand) -> Hand | None:
        tracked = self._thaw(hand)
        if not tracked.is_same_claim(world.row):
            return None
        for run in world.runs:
            tracked.on_observed(self._seen(run), NOW)
        tracked.on_resync(world.row, _is_missing(world), None)
        return self._freeze(tracked)

    def _scene(self, world: World) -> int:
        scene = (world.row, world.cleaned, world.runs, world.made, world.overdue)
        return self._scenes.setdefault(scene, len(self._scenes))

    def _observe(self, world: World, who: int, hand: Hand, run: ObservedRun) -> World:
        tracked = self._thaw(hand)
        tracked.on_observed(self._seen(run), NOW)
        return _put(world, who, self._freeze(tracked))

    def _seen(self, run: ObservedRun) -> ObservedRun:
        return run if self.rules.marked else replace(run, ending=False)

    def _act(self, world: World, scene: int, hand: Hand, lost: int | None = None) -> Effect | None:
        """The real worker's next action on this belief; None if it waits."""
        key = (hand, scene, lost)
        if key not in self._effects:
            self._effects[key] = self._reconcile(world, hand, lost)
        return self._effects[key]

    def _reconcile(self, world: World, hand: Hand, lost: int | None) -> Effect | None:
        tracker, tracked = self._trackers[world.overdue], self._thaw(hand)
        tracker.add(tracked)
        action = tracker.next_action(tracked)
        if isinstance(action, actions.Wait):
            tracker.drop(tracked)
            return None
        asked = self._requests = Requests(world.row, world.cleaned, world.runs, world.made, self.rules.fenced, lost)
        _completed(self._workers[world.overdue].reconcile(hand.row.key))
        after = self._freeze(tracked) if tracker.get(hand.row.key) is tracked else None
        tracker.drop(tracked)
        name = type(action).__name__.lower()
        return Effect(
            name, after, asked.row, asked.cleaned, asked.runs, asked.made, asked.answered, asked.started, asked.outcome
        )

    def _after(self, world: World, effect: Effect) -> World:
        """The world after an action. Raises Broken if the action broke a promise."""
        starts = world.starts
        if effect.started is not None:
            if effect.started.run_uid not in world.loose:
                if world.row.state.terminal:
                    raise Broken("a command started although its row had ended")
                if world.row.run_uid != effect.started.run_uid:
                    raise Broken("a run started that was not bound")
            starts = (*starts, effect.started.key.attempt)
        if effect.outcome is not None:
            _check_outcome(world, effect.outcome)
        return world._replace(row=effect.row, cleaned=effect.cleaned, runs=effect.runs, made=effect.made, starts=starts)

    def _abandon(self, world: World) -> Iterator[tuple[str, World]]:
        """A controller of another engine settles the row, given up or not; what is on the engine stays there."""
        row = world.row
        run_uid = row.run_uid if self.rules.proven else None
        for given_up in (False, True):
            looked = replace(row, run_uid=run_uid, claimed_age=BEYOND_EVERY_TIMEOUT, leased=_held(world))
            action = abandon(looked, 60.0, given_up=given_up)
            loose = world.loose if row.run_uid is None else world.loose | {row.run_uid}
            match action:
                case actions.Record(outcome):
                    after = world._replace(row=replace(row, state=outcome.state), loose=loose)
                case actions.Retry(_, counted) if not row.cancelled:
                    after = world._replace(row=queued_again(row, counted=counted), loose=loose)
                case actions.Clean():
                    after = world._replace(cleaned=True, loose=loose)
                case _:
                    continue
            yield f"settled without its engine: {type(action).__name__.lower()}", after

    def _freeze(self, tracked: TrackedSandbox) -> Hand:
        values = {name: getattr(tracked, name) for name in Hand.NAMES}
        values["launch"] = tracked.launch is not None
        values["runs"] = tuple(run for _, run in sorted(tracked.runs.items()))
        key = tuple(values.values())
        return self._hands.setdefault(key, Hand(key, len(self._hands)))

    def _thaw(self, hand: Hand) -> TrackedSandbox:
        values = dict(zip(Hand.NAMES, hand.key, strict=True))
        values["launch"] = Launch(hand.row.key, "true", 60) if values["launch"] else None
        values["runs"] = {run.run_uid: run for run in hand.runs}
        return self.rules.tracked(**values)


def _completed(work: Coroutine[Any, Any, Any]) -> None:
    """Runs a coroutine that never waits: every request is answered at once."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise RuntimeError("the worker waited for something")


def _engine(world: World) -> Iterator[tuple[str, World]]:
    for run in world.runs:
        if run.phase is Phase.RUNNING:
            for code in (0, 1):
                ended = replace(run, phase=Phase.ENDED, outcome=exit_outcome(code))
                yield f"exit {code}", world._replace(runs=with_run(world.runs, ended))
            if run.ending:
                killed = replace(run, phase=Phase.ENDED, outcome=KILLED)
                yield "killed", world._replace(runs=with_run(world.runs, killed))


def _held(world: World) -> bool:
    return any(hand is not None and hand.mine and hand.row.epoch == world.row.epoch for hand in world.hands)


def _is_missing(world: World) -> bool:
    row = world.row
    return not any(run.key == row.key and row.run_uid in (None, run.run_uid) for run in world.runs)


def _check_outcome(world: World, outcome: Outcome) -> None:
    row, started = world.row, world.row.attempt in world.starts
    if outcome.reason in (Reason.COMPLETED, Reason.NON_ZERO_EXIT) and not started:
        raise Broken("an exit code of a command that never started")
    if outcome.reason is Reason.KILLED:  # nobody but controllers kills here
        raise Broken("a kill of a controller's told as somebody else's")
    untaken = row.epoch == row.attempt  # past a take-over, a paused holder may release what is deleted
    late = (outcome.message or "").startswith("it started too late")
    if late and not started:
        raise Broken("said to have started too late, and it never did")
    if outcome.reason is Reason.START_TIMEOUT and not late and started and untaken:
        raise Broken("said not to have started, and it did")
    if outcome.message == "cancelled before it started" and started and untaken:
        raise Broken("said to be cancelled before it started, and it did start")
    if outcome.state is State.LOST and row.run_uid in uids(world):
        raise Broken("called lost, and it is there")


def queued_again(row: Row, *, counted: bool) -> Row:
    """The row with its next attempt queued."""
    failed = row.failed_attempts + counted
    return replace(
        row, state=State.QUEUED, attempt=row.attempt + 1, run_uid=None, failed_attempts=failed, started_age=None
    )


def uids(world: World) -> set[str]:
    """The runs that the engine has."""
    return {run.run_uid for run in world.runs}


def with_run(runs: tuple[ObservedRun, ...], run: ObservedRun) -> tuple[ObservedRun, ...]:
    """These runs, with that one changed."""
    return tuple(run if each.run_uid == run.run_uid else each for each in runs)


def without(runs: tuple[ObservedRun, ...], run: ObservedRun) -> tuple[ObservedRun, ...]:
    """These runs, but for that one."""
    return tuple(each for each in runs if each is not run)


def _put(world: World, who: int, hand: Hand | None) -> World:
    """The world with that belief. Both are in an order of their own: which controller is which does not matter."""
    other = world.hands[1 - who]
    first = hand is None or (other is not None and hand.number <= other.number)
    return world._replace(hands=(hand, other) if first else (other, hand))


def explore(max_attempts: int, faults: int, rules: Rules | None = None) -> dict[World, list[World]]:
    """Every world that can be reached, and what may follow each. Raises Broken with the way to a broken promise."""
    model = Model(max_attempts, faults, rules or Rules())
    graph: dict[World, list[World]] = {}
    came: dict[World, tuple[str, World | None]] = {model.first(): ("begin", None)}
    edge = list(came)
    gc.disable()  # nothing here is garbage until the end
    logging.disable()  # the worker's warnings of each reply that is lost
    try:
        while edge:
            world = edge.pop()
            if len(world.starts) > len(set(world.starts)):
                raise Broken(f"an attempt started twice: {_way(world, came)}")
            if len(world.starts) > max_attempts:
                raise Broken(f"more runs than max_attempts: {_way(world, came)}")
            nexts = graph[world] = []
            try:
                for name, after in model.moves(world):
                    nexts.append(after)
                    step = (name, world)
                    if came.setdefault(after, step) is step:
                        edge.append(after)
            except Broken as error:
                raise Broken(f"{error}: {_way(world, came)}") from None
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
    return graph


def _way(world: World, came: dict[World, tuple[str, World | None]]) -> str:
    names: list[str] = []
    at: World | None = world
    while at is not None:
        name, at = came[at]
        names.append(name)
    return " / ".join(reversed(names))


def stuck(graph: dict[World, list[World]]) -> set[World]:
    """Worlds from which no order of events, even without another fault, ends the row."""
    before: dict[World, list[World]] = {}
    for world, nexts in graph.items():
        for after in nexts:
            if after.faults == world.faults:
                before.setdefault(after, []).append(world)
    good = {world for world in graph if world.over}
    edge = list(good)
    while edge:
        for world in before.get(edge.pop(), ()):
            if world not in good:
                good.add(world)
                edge.append(world)
    return set(graph) - good
