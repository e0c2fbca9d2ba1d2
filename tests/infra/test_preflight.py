"""A stack that cannot come up is refused before anything is made, with what is missing and where."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.cluster.rights import Rule, rights, rules
from infra.errors import PreflightError
from infra.preflight import preflight
from infra.preflight.cluster import find_cluster
from infra.preflight.database import major_faults
from infra.preflight.engine import StackOnEngine
from tests.support.documented_roles import documented_roles
from tests.support.kubeconfig import kubeconfig, use_kubeconfig
from tests.support.mocked_stack import PREBUILT, ROOT, Configured, configured
from tests.support.ports import free_ports


@pytest.fixture
def config() -> Iterator[Configured]:
    """The configuration that the program reads, with these keys."""
    with configured() as read:
        yield read


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The ports of the stack's own containers, of an engine that answers here."""
    ports: set[int] = set()

    def answers(ask: object) -> StackOnEngine:
        bound = {str(port): [{"HostPort": str(port)}] for port in ports}
        app = {"HostConfig": {"PortBindings": bound}, "State": {"Running": False}}
        return StackOnEngine("arm64", {"ci-fixer-sandbox-it-app": app} if ports else {}, volume=False)

    monkeypatch.setattr("infra.preflight.engine._answer", answers)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    return ports


def test_an_engine_that_does_not_answer_is_named(config: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config(target="docker", dockerSocketGroup=0)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(PreflightError, match=r"Docker engine.*does not answer.*set DOCKER_HOST"):
        preflight(found)


@pytest.mark.parametrize(
    ("keys", "host", "words"),
    [
        (
            {"dockerSocket": "/nowhere.sock"},
            None,
            "there is no socket /nowhere.sock: ci-fixer-sandbox:dockerSocket takes",
        ),
        ({}, "ssh://there", "the Docker engine is at ssh://there, and ci-fixer-sandbox:dockerSocketGroup is missing"),
    ],
)
def test_a_socket_that_cannot_be_mounted_is_named(
    config: Configured,
    ours: set[int],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, str],
    host: str | None,
    words: str,
) -> None:
    if host is not None:
        monkeypatch.setenv("DOCKER_HOST", host)
    ports = dict(zip(("databasePort", "httpPort"), free_ports(2), strict=True))
    (fault,) = preflight(config(target="docker", **ports, **keys)).faults
    assert words in fault


def test_of_an_engine_every_fault_is_named_at_once(config: Configured, ours: set[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        taken = [server.getsockname()[1] for server in (one, other)]
        found = config(target="docker", dockerSocket="/no.sock", databasePort=taken[0], httpPort=taken[1])
        lines = preflight(found).faults
    heads = [f"port {port} of 127.0.0.1 is taken by another program: end it" for port in taken]
    assert [line.partition(", or")[0].partition(": ci-")[0] for line in lines] == [
        *heads,
        "there is no socket /no.sock",
    ]
    assert "pulumi config set --stack it databasePort PORT" in lines[0]


def test_a_port_that_the_stack_itself_has_is_not_refused_and_another_one_keeps_nobody_from_destroying(
    config: Configured, ours: set[int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, free = server.getsockname()[1], free_ports(1)[0]
        found = config(target="docker", dockerSocket="", databasePort=port, httpPort=free)
        ours.add(port)
        assert preflight(found).faults == ()
        ours.clear()
        ours.add(free)  # its containers are there, and were made with another port
        (fault,) = preflight(found).faults
        assert f"port {port} of 127.0.0.1 is taken by another program" in fault


def test_a_controller_that_an_interrupted_destroy_left_stopped_is_told_with_what_to_do(
    config: Configured, ours: set[int]
) -> None:
    found = config(target="docker", dockerSocket="")
    assert (preflight(found).warnings, preflight(found).platform) == ((), "linux/arm64")  # the engine's, not ours
    ours.update(free_ports(1))
    (words,) = preflight(found).warnings
    assert words.startswith("container ci-fixer-sandbox-it-app does not run")
    assert words.endswith("pulumi up --stack it --refresh --run-program")


def test_a_docker_context_that_the_provider_alone_would_follow_is_refused(
    config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    with pytest.raises(
        PreflightError, match=r"DOCKER_CONTEXT is 'default'.*unset it, and name the engine by DOCKER_HOST"
    ):
        preflight(config(target="docker", dockerSocketGroup=0))


def test_a_credential_helper_that_is_not_there_is_named_with_its_file(
    config: Configured, ours: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    ports = dict(zip(("databasePort", "httpPort"), free_ports(2), strict=True))
    keys = {"target": "docker", "dockerSocket": "", **ports}
    for text in (None, "[", "[]", "{}", '{"credHelpers": {}}'):
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        assert preflight(config(**keys)).faults == ()
    (tmp_path / "config.json").write_text('{"credsStore": "nowhere", "credHelpers": {"r.example": "none"}}')
    first, second = preflight(config(**keys)).faults
    assert first.startswith(f"{tmp_path}/config.json names the credential helper none")
    assert "there is no program docker-credential-nowhere: install it" in second
    assert preflight(config(**keys, appImage="r.example/a:1", sandboxImage="r.example/b:1")).faults == ()


@pytest.mark.parametrize("text", ["a: [b", "[]", "", "{}"])
def test_a_file_that_is_no_kubeconfig_is_refused(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", text)
    found = config(**PREBUILT)
    with pytest.raises(PreflightError, match="no cluster is configured"):
        preflight(found)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {},
            "no cluster is configured: .*current-context.*set KUBECONFIG to .*ci-fixer-sandbox:kubeContext",
        ),
        ({"kubeContext": "other"}, "no cluster is configured: .*other.*kubeContext to a context of it"),
        ({"kubeContext": "it"}, "the cluster at http://127.0.0.1:1 .context it. does not answer"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str], words: str
) -> None:
    nowhere = kubeconfig("it", {"server": "http://127.0.0.1:1"}, "t", current=False)
    use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(nowhere))
    found = config(**PREBUILT, **keys)
    with pytest.raises(PreflightError, match=words):
        preflight(found)


def test_of_several_kubeconfigs_no_context_is_taken_for_the_one_in_use(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'one'}{os.pathsep}{tmp_path / 'other'}")
    found = config(**PREBUILT)
    with pytest.raises(PreflightError, match="kubeContext is missing: KUBECONFIG names several files"):
        preflight(found)


@pytest.mark.parametrize(
    ("running", "asked", "words"),
    [
        ("postgres:15.14-bookworm", "postgres:16.1", "files of Postgres 15 .*, which Postgres 16 cannot read"),
        ("localhost:5000/postgres:15", "mirror:5000/postgres:15.3", None),
        ("timescale/timescaledb:2.14.2-pg15", "timescale/timescaledb:2.15.0-pg16", "files of Postgres 15"),
        ("postgres@sha256:" + "0" * 64, "postgres:16.1", None),  # nobody knows
    ],
)
def test_another_major_version_of_postgres_is_refused_where_the_old_one_runs(
    config: Configured, running: str, asked: str, words: str | None
) -> None:
    found = list(major_faults(config(**PREBUILT, postgresImage=asked), running))
    assert bool(found) == bool(words)
    assert all(re.search(str(words), fault) for fault in found)


def test_a_cluster_that_never_answers_is_given_up_in_seconds(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.cluster.client.ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = kubeconfig("it", {"server": f"http://127.0.0.1:{server.getsockname()[1]}"}, "t")
        use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(silent))
        with pytest.raises(PreflightError, match="does not answer"):
            find_cluster(config(**PREBUILT))


def test_rights_are_asked_for_what_the_stack_makes_and_nothing_else(config: Configured) -> None:
    whole = set(rights(config(**PREBUILT)))
    existing: Any = object()  # an output that nobody waits for
    less = whole - set(rights(replace(config(**PREBUILT), database_url=existing)))
    assert {one.kind for one in less} == {"statefulsets", "persistentvolumeclaims"}
    assert {one.kind for one in less if one.verb == "list"} == {"statefulsets"}  # a Deployment's wait lists claims
    without = whole - set(rights(config(**PREBUILT, createLimits=False)))
    assert {one.kind for one in without} == {"limitranges", "resourcequotas"}
    more = set(rights(config(**PREBUILT, requesterNamespaces=["apps"]))) - whole
    assert {one.namespace for one in more if one.kind == "secrets"} == {"apps"}


@pytest.mark.parametrize(("create", "kinds"), [(False, ["ClusterRole", "Role", "Role"]), (True, ["ClusterRole"])])
def test_the_documents_roles_give_what_a_stack_needs_and_no_more(
    config: Configured, create: bool, kinds: list[str]
) -> None:
    found = documented_roles(ROOT / "docs" / "stacks.md")[create]
    assert [one["kind"] for one in found] == kinds
    names = {"namespace": "ci-fixer-sandbox-prod", "sandboxNamespace": "ci-fixer-sandbox-prod-sandboxes"}
    needed = rules(config(**PREBUILT, createNamespaces=create, **names))
    given = [(role["metadata"].get("namespace"), rule) for role in found for rule in role["rules"]]
    assert not any("*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]] for _, rule in given)
    documented = {
        (naming, group, kind, verb)
        for naming, rule in given
        for group in rule["apiGroups"]
        for kind in rule["resources"]
        for verb in rule["verbs"]
        if kind not in LOOKED_UP
    }
    assert documented == set(flat(needed, everywhere=create))
    named = {name for naming, rule in given if naming is None for name in rule.get("resourceNames", ())}
    assert named == {name for rule in needed if rule.namespace is None for name in rule.names if not create}


LOOKED_UP = {"nodes", "persistentvolumes", "priorityclasses", "runtimeclasses", "storageclasses"}


def flat(needed: Sequence[Rule], *, everywhere: bool) -> Iterator[tuple[str | None, str, str, str]]:
    """Namespace, group, kind and verb of each right; without the namespace where it is `everywhere`."""
    for rule in needed:
        for kind in rule.kinds:
            for verb in rule.verbs:
                yield None if everywhere else rule.namespace, rule.group, kind, verb
