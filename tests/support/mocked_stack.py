"""The program under mocks: what it reads, and what it would make, recorded as the engine would get it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime.mocks import MockMonitor

from infra import program
from infra.config import Config
from infra.config.keys import written
from infra.policy.wire import unwrapped
from tests.support.config_keys import SECRETS, schema_defaults
from tests.support.fake_preflight import fake_preflight
from tests.support.provider_answers import answers

PROJECT = "ci-fixer-sandbox"
ROOT = Path(__file__).parents[2]
PREBUILT = {"target": "kubernetes", "appImage": "r.example/app:1", "sandboxImage": "r.example/box:1"}
Inputs = Mapping[str, Any]


@dataclass
class Recorded:
    """Every resource and output of one run. Counts what a test asks, so that one that asks nothing fails."""

    resources: list[tuple[str, str, Inputs]] = field(default_factory=list)
    urns: list[str] = field(default_factory=list)
    exported: dict[str, Any] = field(default_factory=dict)
    secret_outputs: set[str] = field(default_factory=set)
    asked: int = 0

    def all(self, kind: str = "") -> list[tuple[str, str, Inputs]]:
        """Type token, name and inputs of each resource whose token ends so."""
        self.asked += 1
        return [one for one in self.resources if one[0].endswith(kind)]

    def one(self, kind: str, name: str | None = None) -> Any:
        """The inputs of the one resource of a kind (and name), secrets unwrapped."""
        found = [inputs for _, called, inputs in self.all(kind) if name in (None, called)]
        assert len(found) == 1, f"{len(found)} resources are a {kind} called {name}"
        return unwrapped(found[0])

    def names(self, kind: str) -> list[str]:
        """The names of a kind's resources."""
        return sorted(name for _, name, _ in self.all(kind))

    def output(self, name: str) -> Any:
        """A stack output."""
        self.asked += 1
        return self.exported[name]


class Mocks(pulumi.runtime.Mocks):
    """Answers as the providers do, as far as the program reads the answers."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self._recorded.resources.append((args.typ, args.name, args.inputs))
        state = args.inputs | answers(args.typ, args.name, unwrapped(args.inputs), "1234567")
        return f"{args.name}_id", state

    def call(self, args: pulumi.runtime.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        return {}, None


@contextmanager
def own_loops() -> Iterator[None]:
    """An event loop for this thread and one for each in which Pulumi waits, all closed at the end."""
    loops: list[asyncio.AbstractEventLoop] = []

    def start() -> None:
        loops.append(asyncio.new_event_loop())
        asyncio.set_event_loop(loops[-1])

    start()
    try:
        with ThreadPoolExecutor(initializer=start) as threads:
            loops[0].set_default_executor(threads)
            yield
    finally:
        asyncio.set_event_loop(None)
        for loop in loops:
            loop.close()


def configure(config: Mapping[str, Any], stack: str, secrets: Sequence[str]) -> None:
    """Sets these keys over Pulumi.yaml's defaults, as the engine hands them to the program."""
    pulumi.runtime.reset_options(project=PROJECT, stack=stack)
    keys = schema_defaults() | {key: written(value) for key, value in config.items()}
    full = {f"{PROJECT}:{key}": value for key, value in keys.items()}
    pulumi.runtime.set_all_config(full, [f"{PROJECT}:{key}" for key in secrets])


Configured = Callable[..., Config]


@contextmanager
def configured() -> Iterator[Configured]:
    """Reads the configuration of a stack `it` as the program does, with these keys over Pulumi.yaml's defaults."""

    def read(**keys: Any) -> Config:
        configure(keys, "it", ())
        return Config.read()

    yield read
    pulumi.runtime.reset_options()


Deploy = Callable[..., Recorded]


@contextmanager
def deploying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Runs the program with these keys over Pulumi.yaml's defaults; a test that looks at nothing of it fails."""
    made: list[Recorded] = []

    def run(config: Mapping[str, Any], stack: str = "dev", secrets: Sequence[str] = SECRETS) -> Recorded:
        recorded = Recorded()
        with own_loops():
            configure(config, stack, secrets)
            mocks = Mocks(recorded)
            monitor = MockMonitor(mocks)
            pulumi.runtime.set_mocks(mocks, project=PROJECT, stack=stack, preview=False, monitor=monitor)
            _run(recorded)
            recorded.urns = sorted(monitor.get_registered_resources())
            pulumi.runtime.reset_options()
        made.append(recorded)
        return recorded

    monkeypatch.setenv("PULUMI_ERROR_OUTPUT_STRING", "1")
    monkeypatch.chdir(ROOT / "infra")  # where Pulumi runs it
    monkeypatch.setattr(program, "preflight", fake_preflight)
    yield run
    assert all(recorded.asked for recorded in made), "this test deploys and looks at nothing of it"


def _run(recorded: Recorded) -> None:
    @pulumi.runtime.test  # type: ignore[untyped-decorator]
    def go() -> pulumi.Output[None]:
        program.main()
        root = pulumi.runtime.get_root_resource()
        assert root is not None
        outputs: dict[str, Any] = {name: pulumi.Output.from_input(value) for name, value in root.outputs.items()}  # type: ignore[attr-defined]

        def take(values: dict[str, Any]) -> None:
            recorded.exported.update(values)

        async def note() -> None:
            for name, value in outputs.items():
                if await value.is_secret():
                    recorded.secret_outputs.add(name)

        noted = asyncio.ensure_future(note())
        return pulumi.Output.all(**outputs).apply(take).apply(lambda _: noted)

    go()


def on_docker(deploy: Deploy) -> Deploy:
    """The stack on Docker, with these keys; None leaves one out."""
    base = {"target": "docker", "dockerSocketGroup": 0}
    return lambda **config: deploy({key: value for key, value in (base | config).items() if value is not None})


def on_kubernetes(deploy: Deploy) -> Deploy:
    """The stack on Kubernetes, with these keys; None leaves one out."""
    base = {"target": "kubernetes", "registry": "registry.example/team", "kubeContext": "it"}
    return lambda **config: deploy(
        {key: value for key, value in (base | config).items() if value is not None}, stack="prod"
    )


def cluster_objects(recorded: Recorded) -> list[tuple[str, Mapping[str, Any]]]:
    """Type and inputs of each object of the cluster, secrets in clear."""
    every = recorded.all()
    found = [(kind, _whole(unwrapped(inputs))) for kind, _, inputs in every if kind.startswith("kubernetes:")]
    assert len(found) > 20
    return found


def _whole(value: Any) -> Any:
    """With whole numbers as such: the engine's have no kinds."""
    match value:
        case dict():
            return {key: _whole(one) for key, one in value.items()}
        case list():
            return [_whole(one) for one in value]
        case float() if value.is_integer():
            return int(value)
    return value


def kind_of(token: str) -> tuple[str, str, str]:
    """Group, version and plural of `kubernetes:apps/v1:Deployment`."""
    _, version, kind = token.split(":")
    group, _, version = version.rpartition("/")
    plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    return group if group != "core" else "", version, plural
