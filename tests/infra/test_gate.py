"""What stops an `up` runs before anything is made or changed, and in no other command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pulumi
import pytest

from infra import program
from infra.config import Config
from infra.errors import EndRefusedError, PreflightError
from infra.preflight import Found
from infra.preflight.cluster import Cluster
from tests.support.mocked_stack import Deploy

Hooks = dict[str, Callable[[pulumi.ResourceHookArgs], Any]]
APP = "ci-fixer-sandbox-prod"


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Hooks:
    """What the program asks the engine to call, by name; the engine of the mocks calls nothing."""
    found: Hooks = {}
    made = pulumi.ResourceHook.__init__

    def noted(self: Any, name: str, func: Any, opts: Any = None) -> None:
        if name == "preflight":
            assert opts.on_dry_run  # a preview is where it is read
        found[name] = func
        made(self, name, func, opts)

    monkeypatch.setattr(pulumi.ResourceHook, "__init__", noted)
    return found


def step(before: dict[str, Any] | None, after: dict[str, Any]) -> pulumi.ResourceHookArgs:
    """A step of the Stash, as a hook sees it."""
    old = None if before is None else {"input": before}
    return pulumi.ResourceHookArgs("urn", "id", "configuration", "Stash", new_inputs={"input": after}, old_inputs=old)


def finding(monkeypatch: pytest.MonkeyPatch, *faults: str, **found: Any) -> None:
    """Makes this the preflight's answer."""

    def answer(config: Config) -> Found:
        cluster = Cluster("it", "uid-1", **found)
        return Found(cluster, faults, warnings=cluster.warnings)

    monkeypatch.setattr(program, "preflight", answer)


def test_faults_stop_the_first_step_and_a_later_one(
    prod: Deploy, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding(monkeypatch, "one", "two")
    kept = prod().one("Stash", "configuration")["input"]
    assert kept["faults"] == ["one", "two"]
    for before in (None, {**kept, "faults": []}):
        with pytest.raises(PreflightError, match="the stack cannot come up:\n  one\n  two"):
            asyncio.run(hooks["preflight"](step(before, kept)))


def test_without_a_fault_a_change_goes_on_with_what_follows_from_it(
    prod: Deploy, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    kept = prod().one("Stash", "configuration")["input"]
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    asyncio.run(hooks["preflight"](step(None, kept)))
    assert said == []
    asyncio.run(hooks["preflight"](step({**kept, "sandboxNamespace": "former"}, kept)))
    assert [words.partition(":")[2].partition(" changes")[0] for words in said] == ["sandboxNamespace"]


def test_everything_waits_for_the_gate(prod: Deploy, dev: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: dict[str, bool] = {}
    made = pulumi.ComponentResource.__init__

    def noted(self: Any, t: str, name: str, props: Any = None, opts: Any = None, remote: bool = False) -> None:
        after = opts.depends_on if opts and opts.depends_on else []
        if t != "pulumi:pulumi:Stack":
            waited[name] = any(isinstance(one, pulumi.Stash) for one in after)
        made(self, t, name, props, opts, remote)

    monkeypatch.setattr(pulumi.ComponentResource, "__init__", noted)
    for deploy in (prod, dev):
        waited.clear()
        assert deploy().names("Stash")
        assert waited
        assert all(waited.values())


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_a_new_stack_leaves_alone_what_somebody_has_under_its_names(
    name: str, prod: Deploy, dev: Deploy, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster("it", "uid-1") if name == "prod" else None
    monkeypatch.setattr(program, "preflight", lambda config: Found(cluster, taken=("it is there",)))
    assert {"prod": prod, "dev": dev}[name]().names("Stash")
    with pytest.raises(PreflightError, match="it is there"):
        hooks["unless-taken"](step(None, {}))


def test_a_key_that_was_changed_since_the_last_up_ends_no_other_sandboxes(prod: Deploy, hooks: Hooks) -> None:
    kept = prod().one("Stash", "end")["input"]
    where = {"target": "kubernetes", "namespace": APP, "sandboxNamespace": f"{APP}-sandboxes"}
    assert kept == {"name": "ci-fixer-sandbox-prod", **where}
    with pytest.raises(EndRefusedError) as raised:
        asyncio.run(hooks["drain"](step({**kept, "namespace": "former"}, {})))
    assert "namespace was 'former' at the last complete `up`, and is 'ci-fixer-sandbox-prod' now" in str(raised.value)
    assert "pulumi config set --stack prod namespace 'former'" in str(raised.value)
    with pytest.raises(EndRefusedError, match=r"nothing was deleted: name was 'another'.*pulumi stack rename"):
        asyncio.run(hooks["drain"](step({**kept, "name": "another"}, {})))


def test_a_namespace_that_is_there_is_made_by_nobody(
    prod: Deploy, hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding(monkeypatch, left={APP: f"namespace {APP} exists"})
    assert prod().names("v1:Namespace") == ["app-namespace", "sandbox-namespace"]
    with pytest.raises(PreflightError, match=f"namespace {APP} exists"):
        hooks[f"namespace-{APP}"](step(None, {}))
    stopping = [name for name in hooks if name.startswith(("preflight", "namespace-"))]
    assert stopping == ["preflight", f"namespace-{APP}"]


def test_limits_are_left_out_and_warnings_said_where_the_preflight_says_so(
    prod: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    finding(monkeypatch, limits=False, warnings=("a word",))
    monkeypatch.setattr(pulumi.log, "warn", said.append)
    recorded = prod()
    assert recorded.names("LimitRange") == recorded.names("ResourceQuota") == []
    assert said == ["a word"]
