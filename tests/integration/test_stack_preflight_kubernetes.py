"""A stack that cannot come up on a real cluster is refused before anything is made, with what is missing and where."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from kubernetes import client
from kubernetes import config as kubernetes_config
from kubernetes.config import kube_config

from infra.cluster.naming import CONTROLLER, Naming
from infra.cluster.rights import RBAC
from infra.errors import PreflightError
from infra.preflight import preflight
from infra.preflight.cluster import find_cluster
from tests.support.cluster import NAMESPACES, Admin
from tests.support.deployer import Deployer, deployer
from tests.support.engines import need_cluster
from tests.support.kubeconfig import use_kubeconfig
from tests.support.mocked_stack import PREBUILT, Configured, configured


@pytest.fixture
def config() -> Iterator[Configured]:
    """The configuration that the program reads, with these keys."""
    with configured() as read:
        yield read


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
