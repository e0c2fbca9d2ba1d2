"""What ends before a stack's objects go, on a real cluster: what is stopped, waited for, and told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pulumi
import pytest
from kubernetes import client
from kubernetes import config as kubeconfig

from controller.backends.labels import LABEL_APP
from infra.cluster.naming import CONTROLLER, DATABASE, Naming
from infra.config import Config
from infra.ending.deletions import Deletions
from infra.ending.drain import Ending, Patience
from infra.ending.kubernetes import KubernetesEnd
from infra.ending.kubernetes_objects import Location
from infra.ending.sweep import sweep
from infra.errors import EndRefusedError
from tests.support.cluster import IMAGE
from tests.support.engines import need_cluster
from tests.support.mocked_stack import configure

USER = 10001
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
ENDING = Ending("it", 20, protect=False)


@pytest.fixture
def at() -> Iterator[Location]:
    """Two namespaces of a stack, gone afterwards."""
    need_cluster()
    kubeconfig.load_kube_config()
    core, name = client.CoreV1Api(), f"ending-{uuid4().hex[:8]}"
    context = kubeconfig.list_kube_config_contexts()[1]["name"]
    made = Location(Naming("ci-fixer-sandbox", name[-8:]), context, name, f"{name}-sandboxes")
    for namespace in (made.namespace, made.sandbox_namespace):
        core.create_namespace({"metadata": {"name": namespace}})  # type: ignore[arg-type]
    yield made
    for namespace in (made.namespace, made.sandbox_namespace):
        with suppress(client.ApiException):  # one is gone already
            core.delete_namespace(namespace)


def pod(script: str) -> dict[str, Any]:
    """The spec of one that runs this and has ended a second after it is told to."""
    container = {"name": "it", "image": IMAGE, "command": ["sh", "-c", script]}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": POD_SECURITY,
        "containers": [container | {"securityContext": CONTAINER_SECURITY}],
    }


def controllers(at: Location, replicas: int) -> None:
    """A Deployment in the place of the stack's."""
    labels = at.naming.labels(CONTROLLER)
    template = {"metadata": {"labels": labels}, "spec": {**pod("sleep 600"), "restartPolicy": "Always"}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    body: Any = {"metadata": {"name": at.naming.name, "labels": labels}, "spec": spec}
    client.AppsV1Api().create_namespaced_deployment(at.namespace, body)


def replicas(at: Location) -> int | None:
    """As many as the Deployment is to have."""
    return client.AppsV1Api().read_namespaced_deployment(at.naming.name, at.namespace).spec.replicas


def sandbox(at: Location, script: str) -> None:
    """A pod in the place of a sandbox's."""
    body: Any = {"metadata": {"name": "sandbox", "labels": {"app": LABEL_APP}}, "spec": pod(script)}
    client.CoreV1Api().create_namespaced_pod(at.sandbox_namespace, body)


def drain(at: Location, spec: dict[str, Any] | None, ending: Ending = ENDING, patience: Patience | None = None) -> None:
    """As the hook of the stack's end does."""

    async def end() -> None:
        await KubernetesEnd(at, ending, patience).drain(pulumi.Output.from_input(spec))

    asyncio.run(end())


def test_a_drain_stops_the_controllers_first_and_sees_the_last_pod_of_a_sandbox_end(
    at: Location, capfd: pytest.CaptureFixture[str]
) -> None:
    controllers(at, 1)
    sandbox(at, "sleep 4")
    drain(at, pod("echo noise; echo 'drain: waiting, 1 of them'; echo 'drain: nothing is left'"))
    assert replicas(at) == 0
    core = client.CoreV1Api()
    assert core.list_namespaced_pod(at.namespace).items == []
    ended = core.read_namespaced_pod("sandbox", at.sandbox_namespace).status
    assert ended is not None
    assert ended.phase == "Succeeded"
    told = capfd.readouterr()
    assert "drain: waiting, 1 of them" in told.out + told.err
    assert "noise" not in told.out + told.err


def test_a_sandbox_that_no_row_knows_ends_too(at: Location) -> None:
    a_job(at)
    drain(at, pod("echo 'drain: nothing is left'"))
    assert living(at) == []


def test_a_drain_that_leaves_something_is_refused_with_what_to_type_and_the_controllers_run_again(at: Location) -> None:
    controllers(at, 1)
    with pytest.raises(EndRefusedError) as raised:
        drain(at, pod("echo 'drain: 2 sandboxes are left on this engine'; exit 1"))
    assert "2 sandboxes are left on this engine" in str(raised.value)
    assert "pulumi config set --stack it drainSeconds 0" in str(raised.value)
    assert replicas(at) == 1


def test_a_drain_whose_pod_can_never_start_is_refused_at_once_and_the_controllers_run_again(at: Location) -> None:
    controllers(at, 1)
    spec, began = pod("echo 'drain: nothing is left'"), time.monotonic()
    spec["containers"][0]["image"] = f"{IMAGE.rpartition(':')[0]}-that-is-not-there:1"
    with pytest.raises(EndRefusedError) as raised:
        drain(at, spec)
    assert time.monotonic() - began < 30
    assert "drain does not start" in str(raised.value)
    assert "not-there:1" in str(raised.value)
    assert replicas(at) == 1


def test_a_drain_whose_pod_finds_no_node_says_so_while_it_waits(
    at: Location, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EndRefusedError) as raised:
        drain(at, {**pod("true"), "nodeSelector": {"nowhere": "here"}}, patience=Patience(report=0.0, start=3.0))
    told = capfd.readouterr()
    assert "waiting for the pod" in told.out + told.err
    assert "node(s) didn't match" in told.out + told.err
    assert "node(s) didn't match" in str(raised.value)


def test_the_command_that_gives_an_engine_up_is_told_once_and_as_it_is_typed_on_this_machine(at: Location) -> None:
    said = "drain: 1 sandboxes are left on engine E: give it up: `python -m controller give-up E`"
    waiting = said.replace("drain: ", "drain: waiting, ")
    with pytest.raises(EndRefusedError) as raised:
        drain(at, pod(f"cat <<'END'\n{waiting}\n{waiting}\n{said}\nEND\nexit 1"))
    assert str(raised.value).count("left on engine E") == 1
    name, inside = at.naming.name, f"kubectl --context {at.context} -n {at.namespace}"
    assert f"`{inside} exec deployment/{name} -- python -m controller give-up E`" in str(raised.value)


def a_job(at: Location) -> None:
    """A sandbox's, as a controller makes it."""
    labels = {"app": LABEL_APP}
    spec = {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod("sleep 600")}}
    body: Any = {"metadata": {"name": "sandbox", "labels": labels}, "spec": spec}
    client.BatchV1Api().create_namespaced_job(at.sandbox_namespace, body)


def living(at: Location) -> list[Any]:
    """The pods of sandboxes that may still run."""
    left: list[Any] = client.CoreV1Api().list_namespaced_pod(at.sandbox_namespace).items
    return [one for one in left if one.status.phase not in ("Succeeded", "Failed")]


def test_where_what_drains_is_unknown_a_destroy_says_so_and_without_a_drain_all_ends_the_same(at: Location) -> None:
    controllers(at, 1)
    a_job(at)
    words = "is made of .an `up` was interrupted.. Run `pulumi up --refresh --run-program --stack it`"
    with pytest.raises(EndRefusedError, match=words):
        drain(at, None)
    assert replicas(at) == 1
    drain(at, None, replace(ENDING, seconds=0))
    assert replicas(at) == 0
    assert living(at) == []


def test_what_a_destroy_that_was_killed_left_keeps_no_other_from_draining(at: Location) -> None:
    controllers(at, 0)  # it had stopped them
    metadata = {"name": f"{at.naming.name}-drain", "labels": at.naming.labels(CONTROLLER)}
    body: Any = {"metadata": metadata, "spec": {**pod("sleep 600"), "nodeSelector": {"nowhere": "here"}}}
    client.CoreV1Api().create_namespaced_pod(at.namespace, body)
    with pytest.raises(EndRefusedError, match="1 is left"):
        drain(at, pod("echo 'drain: 1 is left'; exit 1"))
    assert replicas(at) == 1  # and one that is refused leaves some that run
    drain(at, pod("echo 'drain: nothing is left'"))
    assert replicas(at) == 0


def test_what_was_started_after_the_drain_ends_before_the_isolation_goes(at: Location) -> None:
    async def end() -> None:
        ends, spec = KubernetesEnd(at, ENDING), pulumi.Output.from_input(pod("echo 'drain: nothing is left'"))
        await ends.drain(spec)
        await asyncio.to_thread(controllers, at, 1)  # somebody else brings them back
        await asyncio.to_thread(a_job, at)
        await ends.drain_alone(spec)

    asyncio.run(end())
    assert living(at) == []
    assert client.AppsV1Api().list_namespaced_deployment(at.namespace).items == []


def test_controllers_that_do_not_stop_are_named_and_nothing_is_drained_beside_them(at: Location) -> None:
    controllers(at, 1)
    while not client.CoreV1Api().list_namespaced_pod(at.namespace).items:
        pass
    with pytest.raises(EndRefusedError, match=f"controllers do not stop: {at.naming.name}-"):
        drain(at, pod("echo 'drain: nothing is left'"), patience=Patience(stop=0))
    assert replicas(at) == 1


def test_a_drain_that_falls_silent_is_refused(at: Location) -> None:
    with pytest.raises(EndRefusedError, match="timed out"):
        drain(at, pod("echo 'drain: waiting'; sleep 600"), replace(ENDING, seconds=2), Patience(margin=0))


def test_a_mute_drain_is_reported_while_it_is_waited_for(at: Location, capfd: pytest.CaptureFixture[str]) -> None:
    drain(at, pod("sleep 4; echo 'drain: nothing is left'"), patience=Patience(report=1))
    told = capfd.readouterr()
    assert f"waiting for pod {at.naming.name}-drain to end" in told.out + told.err
    assert "at most 80 s): it has written nothing yet" in told.out + told.err


def test_without_a_drain_the_jobs_of_sandboxes_are_deleted_with_their_pods(at: Location) -> None:
    a_job(at)
    drain(at, pod("exit 1"), replace(ENDING, seconds=0))
    assert living(at) == []


def test_where_nobody_is_to_wait_a_pod_that_stays_is_said_and_keeps_nobody_from_destroying(
    at: Location, capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox(at, "sleep 600")
    with pytest.raises(EndRefusedError, match="pods of sandboxes are still there: sandbox"):
        drain(at, pod("echo 'drain: nothing is left'"), patience=Patience(stop=0))
    drain(at, None, replace(ENDING, seconds=0), Patience(stop=0))
    told = capfd.readouterr()
    assert f"kubectl delete pod --force -n {at.sandbox_namespace}" in told.out + told.err


def deleted(kind: str, name: str, namespace: str = "") -> pulumi.ResourceHookArgs:
    """What a hook is told of an object that is about to go."""
    old = {"metadata": {"name": name, "namespace": namespace}}
    return pulumi.ResourceHookArgs("urn", "id", "it", kind, old_inputs=old)


def test_a_volume_that_goes_stops_the_database_on_it_and_no_other(at: Location) -> None:
    name, apps = f"{at.naming.name}-database", client.AppsV1Api()
    labels = at.naming.labels(DATABASE)
    template = {"metadata": {"labels": labels}, "spec": {**pod("sleep 600"), "restartPolicy": "Always"}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "serviceName": name, "template": template}
    for namespace in (at.namespace, at.sandbox_namespace):
        body: Any = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        apps.create_namespaced_stateful_set(namespace, body)
    former, now = at.namespace, replace(at, namespace=at.sandbox_namespace)
    asyncio.run(KubernetesEnd(now, ENDING).free_volume(deleted("PersistentVolumeClaim", name, former)))
    left: Any = [apps.read_namespaced_stateful_set(name, one).spec for one in (former, at.sandbox_namespace)]
    assert [one.replicas for one in left] == [0, 1]
    assert client.CoreV1Api().list_namespaced_pod(former).items == []


def test_no_sandbox_outlives_the_policies_of_a_namespace_that_stays(at: Location) -> None:
    a_job(at)

    async def end() -> None:
        moved = replace(at, sandbox_namespace="elsewhere")
        await KubernetesEnd(moved, ENDING).empty(deleted("NetworkPolicy", "deny-all", at.sandbox_namespace))

    asyncio.run(end())
    assert living(at) == []


def test_a_policy_stays_while_controllers_start_sandboxes_behind_it(at: Location) -> None:
    controllers(at, 1)
    patch = [{"name": "it", "env": [{"name": "SANDBOX_NAMESPACE", "value": at.sandbox_namespace}]}]
    body = {"spec": {"template": {"spec": {"containers": patch}}}}
    client.AppsV1Api().patch_namespaced_deployment(at.naming.name, at.namespace, body)
    policy = deleted("NetworkPolicy", "deny-all", at.sandbox_namespace)
    with pytest.raises(EndRefusedError, match=f"controllers still start sandboxes in namespace {at.sandbox_namespace}"):
        asyncio.run(KubernetesEnd(at, ENDING).empty(policy))


def test_what_an_interrupted_up_made_and_did_not_record_goes_and_nobody_elses(
    at: Location,
) -> None:
    core, network = client.CoreV1Api(), client.NetworkingV1Api()
    stacks = {"ours": at.naming, "neighbours": replace(at.naming, stack="another")}
    for name, naming in stacks.items():
        metadata = {"name": name, "labels": naming.labels("network")}
        network.create_namespaced_network_policy(
            at.sandbox_namespace,
            {"metadata": metadata, "spec": {"podSelector": {}}},  # type: ignore[arg-type]
        )
        core.create_namespaced_secret(
            at.namespace,
            {"metadata": {"name": name, "labels": naming.labels("controller")}},  # type: ignore[arg-type]
        )
    keys = {"createNamespaces": False, "namespace": at.namespace, "sandboxNamespace": at.sandbox_namespace}
    configure({"target": "kubernetes", "registry": "r.example/it", **keys}, at.naming.stack, ())
    asyncio.run(sweep(Config.read(), at.context))
    left: Any = (
        *network.list_namespaced_network_policy(at.sandbox_namespace).items,
        *core.list_namespaced_secret(at.namespace).items,
    )
    assert [one.metadata.name for one in left] == ["neighbours", "neighbours"]


def test_a_namespace_that_stays_says_by_what(at: Location, capfd: pytest.CaptureFixture[str]) -> None:
    core, held = client.CoreV1Api(), {"name": "held", "finalizers": ["example.com/never"]}
    core.create_namespaced_config_map(at.namespace, {"metadata": held})  # type: ignore[arg-type]

    async def end() -> None:
        deletions = Deletions(at.context, seconds=0.5)
        await deletions.watch(deleted("Namespace", at.namespace))
        core.delete_namespace(at.namespace)
        told = ""
        while "example.com/never" not in told:
            await asyncio.sleep(0.2)
            seen = capfd.readouterr()
            told += seen.out + seen.err
        assert f"namespace {at.namespace} is still being deleted" in told
        assert "configmaps" in told
        core.patch_namespaced_config_map("held", at.namespace, {"metadata": {"finalizers": None}})
        await asyncio.gather(*deletions.watching)  # they end with the namespace

    asyncio.run(asyncio.wait_for(end(), 110))
