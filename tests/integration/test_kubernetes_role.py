"""The Role that is shipped is the least that works: without any one of its rights a verb of the protocol fails.

That no other right is needed is proved by every other test on a cluster: their controllers have this Role alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.errors import BackendUnavailableError, SandboxError
from controller.protocol.model import Phase
from tests.support.cluster import IMAGE, ROLE, Namespace, make_namespace
from tests.support.engines import Engine, Watched, need_cluster

Rules = list[Mapping[str, Any]]
Act = Callable[[Watched, Engine], Awaitable[None]]
RULES: Rules = yaml.safe_load(ROLE.read_text())["rules"]
RIGHTS = [(resource, verb) for rule in RULES for resource in rule["resources"] for verb in rule["verbs"]]


def without(resource: str, verb: str) -> Rules:
    """The Role's rules less one right."""
    rules: Rules = [
        {**rule, "verbs": [one for one in rule["verbs"] if (rule["resources"][0], one) != (resource, verb)]}
        for rule in RULES
    ]
    return [rule for rule in rules if rule["verbs"]]


async def looks(watched: Watched, engine: Engine) -> None:
    """Takes over an attempt."""
    await watched.backend.create(engine.launch("true"), look=True)


async def releases(watched: Watched, engine: Engine) -> None:
    """Starts a run."""
    await watched.start(engine.launch("true"))


async def kills(watched: Watched, engine: Engine) -> None:
    """Ends a run that no node has taken."""
    launch = engine.launch("true", cpu_millis=256_000)
    made = await watched.start(launch)
    await watched.backend.kill(launch.key, made.run_uid)
    await watched.reaches(launch.key, Phase.NEVER_STARTED)


async def reads(watched: Watched, engine: Engine) -> None:
    """Reads a run's output."""
    ended = await watched.run(engine.launch("echo hi"))
    await watched.backend.output(ended.key, ended.run_uid, 100)


async def removes(watched: Watched, engine: Engine) -> None:
    """Removes what was never started."""
    made = await watched.create(engine.launch("true"))
    await watched.backend.delete(made.key, made.run_uid)


async def cleans(watched: Watched, engine: Engine) -> None:
    """Leaves an ended run to the cluster."""
    ended = await watched.run(engine.launch("true"))
    await watched.backend.delete(ended.key, ended.run_uid)


NEEDED_FOR: Mapping[tuple[str, str], Act] = {
    ("jobs", "get"): looks,
    ("jobs", "delete"): removes,
    ("jobs", "patch"): cleans,
    ("pods", "get"): kills,
    ("pods", "patch"): releases,
    ("pods", "delete"): kills,
    ("pods/log", "get"): reads,
}
NEEDED_TO_BEGIN = {("jobs", "create"), ("jobs", "list"), ("pods", "list")}
NEEDED_TO_OBSERVE = {("jobs", "watch"), ("pods", "watch")}


@pytest.fixture
def less(request: pytest.FixtureRequest) -> Any:
    """A namespace whose login lacks one right."""
    need_cluster()
    made = make_namespace(without(*request.param))
    yield made
    made.remove()


def test_the_role_names_every_right_once_and_no_wildcard() -> None:
    assert set(RIGHTS) == {*NEEDED_FOR, *NEEDED_TO_BEGIN, *NEEDED_TO_OBSERVE}
    assert len(RIGHTS) == len(set(RIGHTS))
    assert not any("*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]] for rule in RULES)


@pytest.mark.parametrize("less", sorted(NEEDED_FOR), indirect=True, ids="-".join)
def test_without_this_right_a_verb_fails(less: Namespace, request: pytest.FixtureRequest) -> None:
    act = NEEDED_FOR[request.node.callspec.params["less"]]
    engine = Engine("kubernetes", less.backend, real=True, image=IMAGE)

    async def go() -> None:
        async with engine.backend() as watched:
            await act(watched, engine)

    with pytest.raises(SandboxError, match=r"(?s)forbidden.*cannot"):
        asyncio.run(go())


@pytest.mark.parametrize("less", sorted(NEEDED_TO_BEGIN), indirect=True, ids="-".join)
def test_without_this_right_a_controller_refuses_to_begin(less: Namespace) -> None:
    engine = Engine("kubernetes", less.backend, real=True, image=IMAGE)

    async def go() -> None:
        backend = engine.connect()
        try:
            await backend.open(engine.installation)
        finally:
            await backend.close()

    with pytest.raises(BackendUnavailableError, match="cannot"):
        asyncio.run(go())


@pytest.mark.parametrize("less", sorted(NEEDED_TO_OBSERVE), indirect=True, ids="-".join)
def test_without_this_right_nothing_is_observed(less: Namespace) -> None:
    engine = Engine("kubernetes", less.backend, real=True, image=IMAGE)

    async def go() -> None:
        backend = engine.connect()
        try:
            await backend.open(engine.installation)
            async for _ in backend.observe():
                pass
        finally:
            await backend.close()

    with pytest.raises(SandboxError, match="cannot watch"):
        asyncio.run(asyncio.wait_for(go(), 30))


@pytest.mark.parametrize("act", [looks, releases, kills, reads, removes, cleans], ids=lambda act: act.__name__)
def test_with_the_whole_role_every_verb_works(act: Act, tmp_path: Path) -> None:
    need_cluster()
    namespace = make_namespace()
    engine = Engine("kubernetes", namespace.backend, real=True, image=IMAGE)

    async def go() -> None:
        async with engine.backend() as watched:
            await act(watched, engine)

    try:
        asyncio.run(go())
    finally:
        namespace.remove()
