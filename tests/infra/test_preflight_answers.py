"""What a preflight makes of a cluster's answers that the tests' own cluster does not give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from infra.cluster.client import ClusterClient, ClusterError, ForbiddenError
from infra.cluster.naming import INSTANCE, NAME
from infra.errors import PreflightError
from infra.preflight import cluster as preflight_cluster
from infra.preflight.classes import api_server_faults, class_faults, node_warnings, secret_faults
from infra.preflight.cluster import version_faults
from infra.preflight.database import database_faults
from infra.preflight.namespaces import given_namespaces, made_namespaces, taken_namespaces
from tests.support.mocked_stack import PREBUILT, configured

CLASSES, VOLUMES = "/apis/storage.k8s.io/v1/storageclasses", "/api/v1/persistentvolumes"
CLAIM = "/api/v1/namespaces/ci-fixer-sandbox-it/persistentvolumeclaims/ci-fixer-sandbox-it-database"
PODS = "/apis/apps/v1/namespaces/ci-fixer-sandbox-it/statefulsets/ci-fixer-sandbox-it-database"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
SERVICE = "/api/v1/namespaces/default/services/kubernetes"


class Answers(ClusterClient):
    """A cluster called `it` that has these objects, by path; what is None is not shown."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self.where, self._objects = "it", objects

    def get(self, path: str) -> Any:
        found = self._objects.get(path, ())
        if found is None:
            raise ForbiddenError(403, "no right")
        return found or None

    def items(self, path: str, labels: Mapping[str, str] | None = None, fields: str = "") -> Any:
        return self.get(path) or ()


answers = Answers


@pytest.fixture
def config() -> Iterator[Any]:
    """The configuration that the program reads, with these keys."""

    with configured() as read:
        yield lambda **keys: read(**PREBUILT | keys)


def storage(name: str, *, default: bool = False, grows: bool = False) -> Mapping[str, Any]:
    """A StorageClass."""
    marks = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {"metadata": {"name": name, "annotations": marks}, "allowVolumeExpansion": grows}


def volume(of: str, phase: str = "Available") -> Mapping[str, Any]:
    """A volume that somebody made by hand."""
    return {"metadata": {"name": "by-hand"}, "spec": {"storageClassName": of}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("objects", "keys", "words"),
    [
        ({CLASSES: [storage("a"), storage("b")]}, {}, "it has no default StorageClass .* there are: a, b"),
        ({}, {}, "it has no default StorageClass .* there are: none"),
        ({CLASSES: [storage("a", default=True)]}, {}, None),
        ({CLASSES: [storage("a", default=True)]}, {"storageClass": "b"}, "it has no StorageClass b, .* there are: a"),
        ({CLASSES: [storage("b")]}, {"storageClass": "b"}, None),
        ({VOLUMES: [volume("b")]}, {"storageClass": "b"}, None),  # bound by name alone
        ({VOLUMES: [volume("b", "Bound")]}, {"storageClass": "b"}, "it has no StorageClass b"),
        ({VOLUMES: [volume("")]}, {}, None),
        ({CLASSES: None}, {"storageClass": "b"}, None),  # the user may not look
        ({VOLUMES: None}, {"storageClass": "b"}, None),
    ],
)
def test_a_new_volume_needs_a_class_or_a_volume_that_waits(
    config: Any, objects: Mapping[str, Any], keys: dict[str, str], words: str | None
) -> None:
    found = list(database_faults(answers(objects), config(**keys)))
    assert len(found) == bool(words)
    for fault in found:
        with pytest.raises(PreflightError, match=str(words)):
            raise PreflightError(fault)


def claim(**capacity: str) -> Mapping[str, Any]:
    """One of 2 GiB."""
    spec = {"storageClassName": "b", "resources": {"requests": {"storage": "2Gi"}}}
    return {"metadata": {"name": "it"}, "spec": spec, "status": {"capacity": capacity}}


@pytest.mark.parametrize(
    ("objects", "size", "refused"),
    [
        ({CLASSES + "/b": storage("b", grows=True)}, "3Gi", False),
        ({CLASSES + "/b": storage("b")}, "3Gi", True),
        ({CLASSES + "/b": None}, "3Gi", False),  # nobody knows
        ({CLAIM: claim(storage="1Gi")}, "1536Mi", False),  # back from a growth that did not happen
        ({CLAIM: claim(storage="2Gi")}, "1536Mi", True),
        ({CLAIM: claim(storage="4Gi")}, "2Gi", False),  # the class gave more than was asked for
    ],
)
def test_a_volume_that_is_there_changes_its_size_as_its_class_allows(
    config: Any, objects: Mapping[str, Any], size: str, refused: bool
) -> None:
    found = list(database_faults(answers({CLAIM: claim(storage="2Gi"), **objects}), config(storageSize=size)))
    assert bool(found) == refused


def test_a_database_that_runs_keeps_its_major_version_and_one_that_does_not_may_be_mended(config: Any) -> None:
    image = {"template": {"spec": {"containers": [{"image": "postgres:15.3"}]}}}
    for ready in (0, 1):
        pods = {"spec": image, "status": {"readyReplicas": ready}}
        there = answers({CLAIM: claim(storage="10Gi"), PODS: pods})
        found = list(database_faults(there, config(postgresImage="postgres:16.1", storageSize="2Gi")))
        assert len(found) == ready


@pytest.mark.parametrize(
    ("version", "faults"),
    [
        ({"major": "1", "minor": "29+"}, ["it is Kubernetes 1.29: the stack needs 1.30 or newer"]),
        ({"major": "1", "minor": "30"}, []),
        ({"major": "2", "minor": "0"}, []),
        ({}, []),
    ],
)
def test_a_cluster_that_is_too_old_is_named(version: Mapping[str, str], faults: list[str]) -> None:
    assert version_faults(answers({"/version": version})) == faults


@pytest.mark.parametrize(
    ("ends", "ip", "cut_off"),
    [("10.9.0.1", "10.96.0.1", False), ("192.0.2.1", "10.9.0.2", False), ("192.0.2.1", "", True)],
)
def test_ranges_that_hold_no_address_of_the_api_server_are_named(
    config: Any, ends: str, ip: str, cut_off: bool
) -> None:
    there = {SLICES: [{"endpoints": [{"addresses": [ends]}]}], SERVICE: {"spec": {"clusterIPs": [ip] if ip else []}}}
    keys = config(apiServerCidrs=["10.9.0.0/24"])
    assert len(list(api_server_faults(answers(there), keys))) == cut_off
    assert list(api_server_faults(answers({SLICES: None}), keys)) == []
    assert list(api_server_faults(answers({SLICES: []}), keys)) == []
    assert list(api_server_faults(answers(there), config(apiServerCidrs=[]))) == []  # that policy is written elsewhere


def test_what_the_user_may_not_look_up_holds_nobody_up(config: Any) -> None:
    class Nothing(Answers):
        def get(self, path: str) -> Any:
            raise ForbiddenError(403, "no right")

    options = {"priorityClassName": "a", "runtimeClassName": "b", "nodeSelector": {"a": "b"}, "imagePullSecrets": ["s"]}
    keys = config(jobOptions=options, imagePullSecret="login", requesterNamespaces=["apps"])
    assert list(taken_namespaces(Nothing({}), config(createNamespaces=False))) == []
    nothing = Nothing({})
    looks = (class_faults, secret_faults, node_warnings, database_faults)
    assert [fault for look in looks for fault in look(nothing, keys)] == []
    assert made_namespaces(nothing, keys) == ([], {})
    assert list(given_namespaces(nothing, keys)) == []


ACCOUNT = "/api/v1/namespaces/ci-fixer-sandbox-it/serviceaccounts/ci-fixer-sandbox-it"
ROLES = "/apis/rbac.authorization.k8s.io/v1/namespaces/ci-fixer-sandbox-it-sandboxes/roles"


def role(project: str, stack: str) -> Mapping[str, Any]:
    """A controller's, of that stack."""
    return {"metadata": {"name": "it", "labels": {NAME: project, INSTANCE: stack}}}


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ({}, []),
        ({ACCOUNT: {"metadata": {}}}, ["ci-fixer-sandbox-it has a stack it already, and this stack's state"]),
        ({ROLES: [role("ci-fixer-sandbox", "it"), role("another", "b"), {"metadata": {}}]}, []),
        (
            {ROLES: [role("ci-fixer-sandbox", "b")]},
            ["ci-fixer-sandbox-it-sandboxes has the sandboxes of stack b: give"],
        ),
    ],
)
def test_a_new_stack_takes_no_other_ones_place_in_namespaces_that_are_given(
    config: Any, objects: Mapping[str, Any], words: Sequence[str]
) -> None:
    found = list(taken_namespaces(answers(objects), config(createNamespaces=False)))
    assert [one.removeprefix("namespace ")[: len(said)] for one, said in zip(found, words, strict=True)] == words
    assert list(taken_namespaces(answers(objects), config())) == []  # what is made is nobody else's


def test_a_cluster_that_leaves_a_question_without_an_answer_stops_an_up_and_nothing_else(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half(Answers):
        def get(self, path: str) -> Any:
            if path.endswith("/kube-system"):
                return {"metadata": {"uid": "uid-1"}}
            raise ClusterError(503, "it says: slow down (503)")

    half = Half({})
    monkeypatch.setattr(preflight_cluster, "_reached", lambda config: ("context", half))
    monkeypatch.setattr(preflight_cluster, "lacking", lambda cluster, rights: [])
    found = preflight_cluster.find_cluster(config())
    assert (found.uid, found.faults) == ("uid-1", ("it says: slow down (503)",))
