"""A small model of the protocol's world: one row, one engine, two controllers that use the real `decide`.

A controller acts on what it last saw, however long ago; a lease runs out at any moment; replies get lost, controllers
crash, the engine doubles and loses runs. A controller of another engine settles the row by the real `abandon`, since it
saw no controller of this engine connected: these may be cut off from the table, and go on. Every order of all that is
explored, up to a number of faults.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple
from uuid import UUID

from controller.protocol.actions import (
    Action,
    Bind,
    Clean,
    Create,
    Discard,
    Drop,
    Kill,
    MarkRunning,
    Record,
    Release,
    Retry,
    Wait,
)
from controller.protocol.decide import Context, abandon, decide
from controller.protocol.model import Key, ObservedRun, Outcome, Phase, Reason, Row, State, exit_outcome

ID = UUID(int=1)
KILLED = Outcome(State.FAILED, Reason.KILLED, "killed", 137)

# Four rules that the promises rest on; tests switch them off to see that the model has teeth.
FENCED = True  # what is in other hands (another epoch) is let go, and cannot be called never started
SPENT = True  # once a release was answered, the run may have started, whatever an old sight of it says
MARKED = True  # the engine keeps that a controller asked for a run's end
PROVEN = True  # without its engine, only a row that is not bound counts as never started
DOUBTED = True  # a bound run that was deleted counts as never started only if no release of it went unanswered


class Table(NamedTuple):
    """The row, as the compare-and-set statements see it."""

    state: State = State.QUEUED
    attempt: int = 1
    epoch: int = 0
    bound: int | None = None
    cancelled: bool = False
    runs: int = 0
    cleaned: bool = False


class Run(NamedTuple):
    """One object on the engine."""

    uid: int
    attempt: int
    phase: Phase = Phase.INERT
    outcome: Outcome | None = None
    ending: bool = False  # a controller asked for its end, which comes in a while


class Hand(NamedTuple):
    """What one controller believes."""

    row: Table
    view: tuple[Run, ...] = ()
    mine: bool = False
    created: bool = False
    missing: bool = False
    fresh: bool = False
    doomed: bool = False  # it asked for the run's end


class World(NamedTuple):
    """Everything."""

    row: Table = Table()
    runs: tuple[Run, ...] = ()
    hands: tuple[Hand | None, Hand | None] = (None, None)
    made: int = 0
    starts: tuple[int, ...] = ()  # the attempt of each start of a command
    overdue: bool = False
    faults: int = 0
    loose: frozenset[int] = frozenset()  # bound runs whose row was settled without their engine

    @property
    def over(self) -> bool:
        return self.row.cleaned and not self.runs and self.hands == (None, None)


class Broken(AssertionError):
    """A promise was broken."""


@cache
def next_step(hand: Hand, overdue: bool, max_attempts: int) -> Action:
    """What the real code decides on that belief."""
    row = hand.row
    uid = None if row.bound is None else str(row.bound)
    real = Row(ID, row.attempt, row.epoch, row.state, uid, None, row.cancelled, max_attempts, row.runs, 60, 1.0, None)
    seen = [
        ObservedRun(Key(ID, run.attempt), str(run.uid), run.phase, run.outcome, ending=run.ending and MARKED)
        for run in hand.view
    ]
    killed = any(run.ending for run in hand.view)
    context = Context(
        hand.mine,
        hand.created,
        overdue,
        missing=hand.missing,
        unreleased=hand.fresh,
        kill_pending=killed,
        kill_sent=hand.doomed,
    )
    return decide(real, seen, context)


def moves(world: World, max_attempts: int, faults: int) -> Iterator[tuple[str, World]]:
    """Every world that may come next, and by what."""
    yield from _engine(world)
    if world.row.state is State.QUEUED and world.row.cancelled:  # cancel_queued, in SQL
        yield "cancel in SQL", world._replace(row=world.row._replace(state=State.CANCELLED, cleaned=True))
    for run in world.runs:
        if run.attempt < world.row.attempt or world.row.cleaned:
            yield "sweep", _without(world, run.uid)
    for who, hand in enumerate(world.hands):
        if world.row.state is State.LAUNCHING and not _held(world):
            yield _take_over(world, who)
        if hand is None:
            yield from _take_up(world, who)
        else:
            ours = (hand.row.attempt, hand.row.epoch) == (world.row.attempt, world.row.epoch)
            yield "look", _put(world, who, _look(world, hand) if ours else None)
            believed = any(run.uid == hand.row.bound and run.phase is not Phase.GONE for run in hand.view)
            if believed and not any(run.uid == hand.row.bound for run in world.runs):
                told = _believe(hand, hand.row.bound, Phase.GONE)._replace(missing=True)
                yield "told of a removal", _put(world, who, told)
            yield from _act(world, who, hand, max_attempts)
    if world.faults < faults:
        worse = world._replace(faults=world.faults + 1)
        yield from _faults(worse, max_attempts)


def _engine(world: World) -> Iterator[tuple[str, World]]:
    for run in world.runs:
        if run.phase is Phase.RUNNING:
            for code in (0, 1):
                ended = run._replace(phase=Phase.ENDED, outcome=exit_outcome(code))
                yield f"exit {code}", _with(world, ended)
            if run.ending:
                yield "killed", _with(world, run._replace(phase=Phase.ENDED, outcome=KILLED))


def _take_up(world: World, who: int) -> Iterator[tuple[str, World]]:
    row = world.row
    if row.state is State.QUEUED and not row.cancelled:
        claimed = row._replace(state=State.LAUNCHING, epoch=row.epoch + 1)
        yield "claim", _put(world._replace(row=claimed), who, Hand(claimed, mine=True))
    elif row.state is not State.QUEUED and not row.cleaned:  # the comparison finds a row in nobody's hands
        yield "adopt", _put(world, who, _look(world, Hand(row)))


def _faults(world: World, max_attempts: int) -> Iterator[tuple[str, World]]:
    row = world.row
    yield from _abandon(world, max_attempts)
    if not row.cancelled and not row.state.terminal:
        yield "cancel", world._replace(row=row._replace(cancelled=True))
    if not world.overdue:
        yield "start deadline", world._replace(overdue=True)
    for run in world.runs:
        yield "vanish", _without(world, run.uid)
        if run.phase is Phase.INERT:
            double = Run(world.made, run.attempt)
            yield "double", world._replace(runs=(*world.runs, double), made=world.made + 1)
    for who, hand in enumerate(world.hands):
        if hand is not None:
            yield "crash", _put(world, who, None)
            for run in hand.view:
                if run.phase is Phase.STARTING:  # what the engine said before the release arrives after it
                    yield "old sight", _put(world, who, _believe(hand, run.uid, Phase.INERT))
            for name, after in _act(world, who, hand, max_attempts):  # done, and no answer came
                pair = _pair(hand._replace(fresh=False), world.hands[1 - who])
                yield f"{name}, reply lost", after._replace(hands=pair)
        if row.state is State.LAUNCHING and _held(world):  # a lease ran out, whatever its holder believes
            yield _take_over(world, who)


def _abandon(world: World, max_attempts: int) -> Iterator[tuple[str, World]]:
    """A controller of another engine settles the row, given up or not; what is on the engine stays there."""
    row = world.row
    uid = None if row.bound is None else str(row.bound)
    if row.bound is not None and not PROVEN:
        uid = None
    leased, age = _held(world), 1e9  # a run that started has long been ended by its own timer
    for given_up in (False, True):
        real = Row(
            ID, row.attempt, row.epoch, row.state, uid, None, row.cancelled, max_attempts, row.runs, 60, age, None
        )
        step = abandon(replace(real, leased=leased), 60.0, given_up=given_up)
        loose = world.loose if row.bound is None else world.loose | {row.bound}
        match step:
            case Record(outcome):
                settled = row._replace(state=outcome.state)
            case Retry(_, counted) if not row.cancelled:
                runs = row.runs + counted
                settled = row._replace(state=State.QUEUED, attempt=row.attempt + 1, bound=None, runs=runs)
            case Clean():
                settled = row._replace(cleaned=True)
            case _:
                continue
        yield f"settled without its engine: {type(step).__name__.lower()}", world._replace(row=settled, loose=loose)


def _held(world: World) -> bool:
    return any(hand is not None and hand.mine and hand.row.epoch == world.row.epoch for hand in world.hands)


def _take_over(world: World, who: int) -> tuple[str, World]:
    taken = world.row._replace(epoch=world.row.epoch + 1)
    return "take over", _put(world._replace(row=taken), who, Hand(taken, mine=True))


def _look(world: World, hand: Hand) -> Hand:
    """The controller compares: reads row and engine again."""
    row = world.row
    there = tuple(run for run in world.runs if run.attempt == row.attempt)
    gone = not any(row.bound in (None, run.uid) for run in there)
    # what release or delete learned of the bound run stays known
    kept = tuple(
        run for run in hand.view if gone and run.uid == row.bound and run.phase in (Phase.NEVER_STARTED, Phase.GONE)
    )
    return hand._replace(row=row, view=there + kept, missing=gone)


def _act(world: World, who: int, hand: Hand, max_attempts: int) -> Iterator[tuple[str, World]]:
    """The controller takes the step that the real code decides, as controller/reconcile/steps.py does."""
    step = next_step(hand, world.overdue, max_attempts)
    run_of = step.run if isinstance(step, Bind | Release | MarkRunning | Kill | Discard) else None
    uid = None if run_of is None else int(run_of.run_uid)
    row, asked = world.row, hand.row
    same = (row.attempt, row.bound) == (asked.attempt, asked.bound) and row.state in (State.LAUNCHING, State.RUNNING)
    run = next((run for run in world.runs if run.uid == uid), None)
    after = world
    match step:
        case Wait():
            return
        case Create():
            there = next((run for run in world.runs if run.attempt == asked.attempt), None)
            if there is None:
                there = Run(world.made, asked.attempt)
                after = world._replace(runs=(*world.runs, there), made=world.made + 1)
            mine: Hand | None = hand._replace(view=(*hand.view, there), created=True, missing=False)
        case Bind():
            fits = (row.attempt, row.epoch) == (asked.attempt, asked.epoch) and row.bound in (None, uid)
            if fits and row.state is State.LAUNCHING and not row.cancelled:
                after = world._replace(row=row._replace(bound=uid))
                first = asked.bound is None and run_of is not None and run_of.phase is Phase.INERT
                mine = hand._replace(row=asked._replace(bound=uid), fresh=first)
            else:
                mine = _refresh(world, hand)
        case Release() if run is None:
            mine = _believe(hand, uid, Phase.NEVER_STARTED if hand.fresh else Phase.GONE)
        case Release():
            if run is not None and run.phase is Phase.INERT:
                after = _start(world, run)
            mine = _believe(hand, uid, Phase.STARTING)._replace(fresh=hand.fresh and not SPENT)
        case MarkRunning():
            fits = same and row.state is State.LAUNCHING
            after = world._replace(row=row._replace(state=State.RUNNING)) if fits else world
            mine = hand._replace(row=after.row) if fits else _refresh(world, hand)
        case Kill():
            if run is not None and run.phase is Phase.RUNNING:
                after = _with(world, run._replace(ending=True))
            mine = hand._replace(doomed=True)
        case Discard():
            after = world if uid is None else _without(world, uid)
            if uid == asked.bound and run_of is not None and run_of.phase is Phase.INERT:
                mine = _believe(hand, uid, Phase.NEVER_STARTED if hand.fresh or not DOUBTED else Phase.GONE)
            else:
                mine = hand._replace(view=tuple(one for one in hand.view if one.uid != uid), created=False)
        case Record(outcome) if same:
            _check_outcome(world, outcome)
            after = world._replace(row=row._replace(state=outcome.state))
            mine = hand._replace(row=asked._replace(state=outcome.state))
        case Retry(_, counted) if same and not row.cancelled and (counted or row.epoch == asked.epoch or not FENCED):
            queued = row._replace(state=State.QUEUED, attempt=row.attempt + 1, bound=None, runs=row.runs + counted)
            after = world._replace(row=queued, runs=tuple(one for one in world.runs if one.attempt != asked.attempt))
            mine = None
        case Record() | Retry():
            mine = _refresh(world, hand)
        case Clean():
            after = world._replace(runs=tuple(one for one in world.runs if one.attempt != asked.attempt))
            if row.state.terminal:
                after = after._replace(row=row._replace(cleaned=True))
            mine = None
        case Drop():
            mine = None
    yield type(step).__name__.lower(), _put(after, who, mine)


def _refresh(world: World, hand: Hand) -> Hand | None:
    row = world.row
    if row.attempt != hand.row.attempt or (FENCED and row.epoch != hand.row.epoch):
        return None
    return hand._replace(row=row, mine=hand.mine and row.epoch == hand.row.epoch)


def _start(world: World, run: Run) -> World:
    """The engine starts a command: the moment that the promises are about."""
    if run.uid not in world.loose:
        if world.row.state.terminal:
            raise Broken("a command started although its row had ended")
        if world.row.bound != run.uid:
            raise Broken("a run started that was not bound")
    return _with(world._replace(starts=(*world.starts, run.attempt)), run._replace(phase=Phase.RUNNING))


def _check_outcome(world: World, outcome: Outcome) -> None:
    started = world.row.attempt in world.starts
    if outcome.reason in (Reason.COMPLETED, Reason.NON_ZERO_EXIT) and not started:
        raise Broken("an exit code of a command that never started")
    if outcome.reason is Reason.KILLED:  # nobody but controllers kills here
        raise Broken("a kill of a controller's told as somebody else's")
    untaken = world.row.epoch == world.row.attempt  # past a take-over, a paused holder may release what is deleted
    late = (outcome.message or "").startswith("it started too late")
    if late and not started:
        raise Broken("said to have started too late, and it never did")
    if outcome.reason is Reason.START_TIMEOUT and not late and started and untaken:
        raise Broken("said not to have started, and it did")
    if outcome.message == "cancelled before it started" and started and untaken:
        raise Broken("said to be cancelled before it started, and it did start")
    if outcome.state is State.LOST and any(run.uid == world.row.bound for run in world.runs):
        raise Broken("called lost, and it is there")


def _believe(hand: Hand, uid: int | None, phase: Phase) -> Hand:
    return hand._replace(view=tuple(one._replace(phase=phase) if one.uid == uid else one for one in hand.view))


def _put(world: World, who: int, hand: Hand | None) -> World:
    return world._replace(hands=_pair(hand, world.hands[1 - who]))


def _pair(one: Hand | None, other: Hand | None) -> tuple[Hand | None, Hand | None]:
    """Both in an order of their own: which controller is which does not matter."""
    return (one, other) if hash(one) <= hash(other) else (other, one)


def _with(world: World, run: Run) -> World:
    return world._replace(runs=tuple(run if one.uid == run.uid else one for one in world.runs))


def _without(world: World, uid: int) -> World:
    return world._replace(runs=tuple(one for one in world.runs if one.uid != uid))


def explore(max_attempts: int, faults: int) -> dict[World, list[World]]:
    """Every world that can be reached, and what may follow each. Raises Broken with the way to a broken promise."""
    next_step.cache_clear()  # it depends on a rule
    graph: dict[World, list[World]] = {}
    came: dict[World, tuple[str, World | None]] = {World(): ("begin", None)}
    edge = [World()]
    gc.disable()  # nothing here is garbage until the end
    try:
        while edge:
            world = edge.pop()
            if len(world.starts) > len(set(world.starts)):
                raise Broken(f"an attempt started twice: {_way(world, came)}")
            if len(world.starts) > max_attempts:
                raise Broken(f"more runs than max_attempts: {_way(world, came)}")
            nexts = graph[world] = []
            try:
                for name, after in moves(world, max_attempts, faults):
                    nexts.append(after)
                    if after not in came:
                        came[after] = (name, world)
                        edge.append(after)
            except Broken as error:
                raise Broken(f"{error}: {_way(world, came)}") from None
    finally:
        gc.enable()
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
