"""A stack that cannot come up is refused before anything is made, with what is missing and where."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pulumi
import pytest
import yaml
from kubernetes import client
from kubernetes import config as kubernetes_config
from kubernetes.config import kube_config

from infra.cluster.naming import CONTROLLER, Naming
from infra.cluster.rights import RBAC, Rule, rights, rules
from infra.config import Config
from infra.errors import PreflightError
from infra.preflight import preflight
from infra.preflight.cluster import find_cluster
from infra.preflight.database import major_faults
from infra.preflight.engine import StackOnEngine
from tests.infra.conftest import ROOT, configure
from tests.support.cluster import NAMESPACES, Admin
from tests.support.deployer import Deployer, deployer, documented_roles
from tests.support.engines import need_cluster, need_docker
from tests.support.kubeconfig import kubeconfig
from tests.support.ports import free_ports

Configured = Callable[..., Config]
PREBUILT = {"target": "kubernetes", "appImage": "r.example/app:1", "sandboxImage": "r.example/box:1"}


@pytest.fixture
def config() -> Iterator[Callable[..., Config]]:
    """The configuration that the program reads, with these keys."""

    def read(**keys: Any) -> Config:
        configure(keys, "it", ())
        return Config.read()

    yield read
    pulumi.runtime.reset_options()


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


def use_kubeconfig(monkeypatch: pytest.MonkeyPatch, file: Path, text: str) -> None:
    """Writes it, and makes it the one that is taken."""
    file.write_text(text)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))


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


def test_what_another_state_has_under_the_stacks_names_is_named_with_what_to_do(config: Configured) -> None:
    need_docker()
    stack = f"taken-{uuid4().hex[:6]}"
    found = replace(config(target="docker", dockerSocketGroup=0), stack=stack)
    assert preflight(found).taken == ()
    volume = f"ci-fixer-sandbox-{stack}-database"
    subprocess.run(["docker", "volume", "create", volume], check=True, capture_output=True)
    try:
        (words,) = preflight(found).taken
    finally:
        subprocess.run(["docker", "volume", "rm", volume], check=True, capture_output=True)
    assert words.startswith(f"the engine has volume {volume}, and this stack's state does not know it")
    assert words.endswith(f"docker volume rm {volume}")


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


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two of the cluster's, made as this stack makes its own."""
    need_cluster()
    kubernetes_config.load_kube_config()
    core, names = client.CoreV1Api(), [f"preflight-{uuid4().hex[:8]}" for _ in range(2)]
    labels = Naming("ci-fixer-sandbox", "it").labels(CONTROLLER)
    for name in names:
        core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels)))
    yield names
    for name in names:
        with suppress(client.ApiException):  # a test has deleted it
            core.delete_namespace(name)


def test_a_cluster_is_the_same_by_whatever_context_it_is_reached(
    config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_cluster()
    found = find_cluster(config(**PREBUILT))
    file = Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION.split(os.pathsep)[0]).expanduser()
    renamed = yaml.safe_load(file.read_text())
    renamed["contexts"] = [one | {"name": "another"} for one in renamed["contexts"] if one["name"] == found.context]
    use_kubeconfig(monkeypatch, tmp_path / "config", yaml.safe_dump(renamed))
    assert find_cluster(config(**PREBUILT, kubeContext="another")) == replace(found, context="another")


def given(namespaces: list[str]) -> dict[str, Any]:
    """A stack in these, that are there already."""
    return {**PREBUILT, "createNamespaces": False, "namespace": namespaces[0], "sandboxNamespace": namespaces[1]}


def test_what_the_configuration_names_and_the_cluster_has_not_is_told_all_at_once(
    config: Configured, namespaces: list[str]
) -> None:
    app, boxes = namespaces
    options = {"runtimeClassName": "rc-1", "priorityClassName": "pc-1", "imagePullSecrets": ["s-1"]}
    keys = {
        "requesterNamespaces": ["nowhere-2"],
        "imagePullSecret": "login",
        "storageClass": "sc-1",
        "jobOptions": {**options, "nodeSelector": {"disk": "golden"}},
        "apiServerCidrs": ["192.0.2.0/24"],
    }
    theirs = given(namespaces)
    assert find_cluster(replace(config(**theirs), stack="another")).faults == ()
    found = find_cluster(replace(config(**theirs | keys), stack="another"))
    wanted = [
        "has no namespace nowhere-2: create it first",
        f"has no secret login in namespace {app}, which imagePullSecret names: create it first",
        f"has no secret login in namespace {boxes}, which imagePullSecret names: create it first",
        f"has no secret s-1 in namespace {boxes}, which imagePullSecrets of jobOptions names: create it first",
        "has no StorageClass sc-1, which ci-fixer-sandbox:storageClass names; there are: ",
        "has no RuntimeClass rc-1, which runtimeClassName of ci-fixer-sandbox:jobOptions names; there are: ",
        "has no PriorityClass pc-1, which priorityClassName of ci-fixer-sandbox:jobOptions names; there are: system-",
        "ci-fixer-sandbox:apiServerCidrs holds no address of the API server",
    ]
    assert len(found.faults) == len(wanted)
    assert preflight(replace(config(**theirs | keys), stack="another")).faults == found.faults
    assert [words for words, fault in zip(wanted, found.faults, strict=True) if words not in fault] == []
    waits = "no node has the labels disk=golden of jobOptions' nodeSelector: sandboxes wait until one has"
    assert found.warnings == (waits,)


def test_a_namespace_that_is_not_there_is_named(config: Configured, namespaces: list[str]) -> None:
    found = find_cluster(replace(config(**given(["nowhere-1", namespaces[1]])), stack="another"))
    assert [fault.partition(" has ")[2] for fault in found.faults] == ["no namespace nowhere-1: create it first"]


def test_a_namespace_that_the_stack_made_cannot_be_given_up_with_all_in_it(
    config: Configured, namespaces: list[str]
) -> None:
    found = find_cluster(config(**given(namespaces)))
    words = [
        f"Namespace {name} was created by this stack; createNamespaces false would delete it" for name in namespaces
    ]
    assert [fault.partition(" with everything in it.")[0] for fault in found.faults] == words


def test_a_namespace_of_somebody_else_is_not_made_into_the_stacks_own(
    config: Configured, namespaces: list[str]
) -> None:
    app, boxes = namespaces
    keys = {**PREBUILT, "namespace": app, "sandboxNamespace": boxes}
    found = find_cluster(replace(config(**keys), stack="another"))
    assert [fault.partition(": ")[0] for fault in found.faults] == [
        f"namespace {name} exists, and is not this stack's" for name in namespaces
    ]
    ours = preflight(config(**keys, storageClass="sc-1"))  # made by an `up`: its end is not refused
    assert ours.cluster is not None
    assert len(ours.faults) == 1
    assert "the stack's state does not know it" in ours.cluster.left[app]
    assert f"kubectl delete namespace {boxes}" in ours.cluster.left[boxes]


def test_a_namespace_that_is_being_deleted_is_told_with_what_holds_it(
    config: Configured, namespaces: list[str]
) -> None:
    app, admin = namespaces[0], Admin()
    maps = f"{NAMESPACES}/{app}/configmaps"
    admin.call("POST", maps, {"metadata": {"name": "kept", "finalizers": ["example.org/kept"]}})
    admin.call("DELETE", f"{NAMESPACES}/{app}")
    try:
        deadline = time.monotonic() + 30
        while True:
            (fault,) = find_cluster(config(**PREBUILT, namespace=app)).faults
            if "example.org/kept" in fault:
                break
            assert time.monotonic() < deadline, fault
        assert fault.startswith(f"namespace {app} is being deleted, held by: ")
    finally:
        merge = "application/merge-patch+json"
        admin.call("PATCH", f"{maps}/kept", {"metadata": {"finalizers": None}}, merge)


@pytest.fixture
def claim(namespaces: list[str]) -> dict[str, Any]:
    """The volume of a stack's database that is up, of a class that does not let it grow."""
    admin = Admin()
    every = admin.call("GET", "/apis/storage.k8s.io/v1/storageclasses")["items"]
    classes = [str(one["metadata"]["name"]) for one in every if not one.get("allowVolumeExpansion")]
    if not classes:
        pytest.skip("every StorageClass of this cluster lets volumes grow")
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": min(classes),
        "resources": {"requests": {"storage": "2Gi"}},
    }
    body = {"metadata": {"name": "ci-fixer-sandbox-another-database"}, "spec": spec}
    admin.call("POST", f"{NAMESPACES}/{namespaces[0]}/persistentvolumeclaims", body)
    return spec


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"storageClass": "other"}, "storageClass is other, and the database's volume .* has the class CLASS, which"),
        ({"storageSize": "1Gi"}, "storageSize is 1Gi, and the database's volume .* has 2Gi: it cannot shrink"),
        ({"storageSize": "3Gi"}, "storageSize is 3Gi, and .* has 2Gi of the StorageClass CLASS, which does not allow"),
        ({"storageSize": "2048Mi"}, None),
        ({"storageClass": "CLASS", "storageSize": "2Gi"}, None),
    ],
)
def test_a_volume_that_is_there_keeps_its_class_and_does_not_shrink(
    config: Configured, namespaces: list[str], claim: dict[str, Any], keys: dict[str, str], words: str | None
) -> None:
    named = {key: value.replace("CLASS", claim["storageClassName"]) for key, value in keys.items()}
    faults = find_cluster(replace(config(**given(namespaces) | {"storageSize": "2Gi"} | named), stack="another")).faults
    if words is None:
        assert faults == ()
    else:
        (fault,) = faults
        assert re.search(words.replace("CLASS", claim["storageClassName"]), fault)


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


@pytest.fixture
def somebody() -> Iterator[Deployer]:
    """A login with no right yet, and two namespaces."""
    need_cluster()
    with deployer() as made:
        yield made


def of(one: Deployer) -> dict[str, Any]:
    """A stack in the login's namespaces."""
    return given([one.app, one.boxes])


def test_every_right_that_is_missing_is_told_at_once_with_where_to_look(
    config: Configured, somebody: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", somebody.kubeconfig())
    keys = config(**of(somebody), createLimits=True)
    with pytest.raises(
        PreflightError, match=r"\"kube-system\".*the context's user needs `get` on it.*docs/stacks.md, Rights"
    ):
        find_cluster(keys)
    somebody.may([{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}])
    somebody.bind("ClusterRole", "view", somebody.app)
    found = find_cluster(keys).faults
    in_app, in_boxes, limits, section = found
    assert in_app.startswith(f"the context's user may not, in namespace {somebody.app}: get, list, ")
    assert "get, list, watch, create, patch, delete secrets" in in_app
    assert "; create, patch, delete deployments.apps; " in in_app
    assert "; create, delete pods" in in_app
    assert in_boxes.startswith(f"the context's user may not, in namespace {somebody.boxes}: ")
    assert "create, patch, delete limitranges" in in_boxes.replace("get, list, watch, ", "")
    assert "createLimits false leaves them to it" in limits
    assert section == "the rights to ask for are in docs/stacks.md, Rights"


def test_whoever_may_grant_what_he_has_not_needs_no_rights_on_sandboxes(
    config: Configured, somebody: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", somebody.kubeconfig())
    somebody.may([{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}])
    somebody.bind("ClusterRole", "admin", somebody.app)
    every = ["get", "list", "watch", "create", "patch", "delete"]
    kinds = {"": ["limitranges", "resourcequotas"], "networking.k8s.io": ["networkpolicies"], RBAC: ["rolebindings"]}
    own = [{"apiGroups": [group], "resources": of_group, "verbs": every} for group, of_group in kinds.items()]
    own.append({"apiGroups": [RBAC], "resources": ["roles"], "verbs": every})
    own.append({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["deletecollection"]})
    somebody.may(own, somebody.boxes)
    assert "create, get, list, watch, delete, patch jobs.batch" in find_cluster(config(**of(somebody))).faults[0]
    somebody.may([{"apiGroups": [RBAC], "resources": ["roles"], "verbs": ["escalate", "bind"]}], somebody.boxes)
    assert find_cluster(config(**of(somebody))).faults == ()


def test_an_admin_of_two_namespaces_needs_no_more(
    config: Configured, somebody: Deployer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", somebody.kubeconfig())
    names = ["kube-system"]
    somebody.may([{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"], "resourceNames": names}])
    for namespace in (somebody.app, somebody.boxes):
        somebody.bind("ClusterRole", "admin", namespace)
    found = find_cluster(config(**of(somebody), jobOptions={"priorityClassName": "not-for-us-to-see"}))
    assert (found.faults, found.limits) == ((), False)
    (warning,) = found.warnings
    assert warning.startswith(
        f"The context's user may not create a LimitRange or ResourceQuota in {somebody.boxes}, so"
    )
    meant = find_cluster(config(**of(somebody), createLimits=False))
    assert (meant.faults, meant.limits, meant.warnings) == ((), False, ())
    wanted = find_cluster(config(**of(somebody), quotaPods=20))  # a key without effect is a fault
    assert [fault for fault in wanted.faults if "resourcequotas" in fault] != []
    quota = {"metadata": {"name": "ci-fixer-sandbox-it"}, "spec": {"hard": {"pods": "9"}}}
    somebody.admin.call("POST", f"/api/v1/namespaces/{somebody.boxes}/resourcequotas", quota)
    kept = find_cluster(config(**of(somebody)))  # made by somebody who may
    assert (kept.faults, kept.limits, kept.warnings) == ((), True, ())


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
