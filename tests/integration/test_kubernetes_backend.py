"""What the Kubernetes backend alone promises, on a real cluster; what all backends promise is in tests/conformance."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from psycopg.rows import DictRow

from controller.backends.kubernetes import manifest
from controller.backends.kubernetes.backend import KubernetesBackend
from controller.backends.kubernetes.manifest import RECORDED
from controller.backends.kubernetes.options import JobOptions
from controller.backends.registry import create_backend
from controller.errors import (
    BackendUnavailableError,
    RequestRejectedError,
    RunNotFoundError,
    SettingsError,
    TransientEngineError,
)
from controller.protocol.model import Key, Launch, ObservedRun, Phase, Reason, State
from controller.settings import Settings
from tests.support import engines
from tests.support.cluster import IMAGE, Namespace, Refusal, make_namespace, session_namespace
from tests.support.engines import Engine, Watched, ended, make_engine
from tests.support.stage import ROOT, Stage, stage

MERGE = "application/merge-patch+json"
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
GIB = 1 << 30


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The cluster, rid at the end of this test's Jobs."""
    made = make_engine("kubernetes", tmp_path)
    yield made
    for path in session_namespace().leftovers(f"installation={made.installation}"):
        session_namespace().delete(path)


@pytest.fixture
def namespace(engine: Engine) -> Namespace:
    """Where the engine's Jobs are, with the rights of whoever may do everything."""
    return session_namespace()


@pytest.fixture
def made(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[Stage]:
    """A whole controller on the cluster, with the settings that the test gives."""
    make_engine("kubernetes", tmp_path)
    with stage("kubernetes", tmp_path, database, **getattr(request, "param", {})) as made:
        made.start()
        yield made


async def printing(watched: Watched, launch: Launch) -> ObservedRun:
    """Starts it and waits until its node has a log of it."""
    made = await watched.start(launch)
    running = await watched.reaches(launch.key, Phase.RUNNING)
    async with asyncio.timeout(30):
        while not (await watched.backend.output(launch.key, made.run_uid, 100)).tail:
            await asyncio.sleep(0.1)
    return running


def find(namespace: Namespace, kind: str, name: str) -> Any:
    """One object as it stands."""
    return namespace.admin.call("GET", namespace.path(kind, name))


def pod_of(namespace: Namespace, key: Key) -> Any:
    """The attempt's one pod."""
    (pod,) = namespace.objects("pods", f"sandboxId={key.sandbox_id}")
    return pod


@contextmanager
def present(namespace: Namespace, kind: str, body: Mapping[str, Any]) -> Iterator[None]:
    """An object of the test's own, there for a while."""
    namespace.admin.call("POST", namespace.path(kind), body)
    try:
        yield
    finally:
        namespace.delete(namespace.path(kind, body["metadata"]["name"]))


@contextmanager
def quota(namespace: Namespace, **hard: str) -> Iterator[None]:
    """A limit on what the namespace may hold, once it is in force."""
    limits = {name.replace("__", "/").replace("_", "."): value for name, value in hard.items()}
    with present(namespace, "resourcequotas", {"metadata": {"name": "full"}, "spec": {"hard": limits}}):
        until = time.monotonic() + 30
        while find(namespace, "resourcequotas", "full")["status"].get("hard") != limits:
            assert time.monotonic() < until, "the quota never came into force"
            time.sleep(0.05)
        yield


def ask(made: Stage, command: str, **columns: object) -> UUID:
    """Asks for a sandbox as a requester does; its id."""
    asked = {"command": command, "memory_mib": 64, "disk_mib": 16, "cpu_millis": 200, **columns}
    places = ", ".join(["%s"] * len(asked))
    rows = made.query(f"insert into sandboxes ({', '.join(asked)}) values ({places}) returning id", *asked.values())
    return UUID(str(rows[0]["id"]))


def row(made: Stage, sandbox: UUID) -> DictRow:
    """The whole row with its result."""
    words = "select * from sandbox_results r join sandboxes using (id) where id = %s"
    return made.query(words, sandbox)[0]


def reaches(made: Stage, sandbox: UUID, what: str, true: Callable[[DictRow], bool], seconds: float = 40) -> DictRow:
    """Waits for a condition on the row."""
    made.wait(f"{what} of {sandbox}", lambda: true(row(made, sandbox)), seconds, 0.1)
    return row(made, sandbox)


def finishes(made: Stage, sandbox: UUID, seconds: float = 40) -> DictRow:
    return reaches(made, sandbox, "the end", lambda row: row["finished_at"] is not None, seconds)


# Somebody else's hands


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("jobs", {"propagationPolicy": "Background"}),
        ("jobs", {"propagationPolicy": "Foreground"}),
        ("pods", {}),
        ("pods", {"gracePeriodSeconds": 0}),
    ],
    ids=["job", "job in the foreground", "pod", "pod by force"],
)
async def test_what_somebody_deletes_says_so_and_leaves_the_output_so_far(
    engine: Engine, namespace: Namespace, kind: str, options: dict[str, Any], watched: Watched
) -> None:
    launch = engine.launch("echo out; sleep 60; echo late")
    made = await printing(watched, launch)
    name = launch.key.name if kind == "jobs" else pod_of(namespace, launch.key)["metadata"]["name"]
    namespace.admin.call("DELETE", namespace.path(kind, name), options)
    seen = await watched.reaches(launch.key, Phase.ENDED)
    assert seen.run_uid == made.run_uid
    assert seen.outcome is not None
    assert (seen.outcome.state, seen.outcome.reason) == (State.FAILED, Reason.DELETED)
    await is_gone(namespace, launch.key)
    output = await watched.backend.output(launch.key, seen.run_uid, 1000)  # what was saved while it went
    assert output.tail == b"out\n"
    assert output.truncated
    await watched.backend.delete(launch.key, seen.run_uid)


async def is_gone(namespace: Namespace, key: Key) -> None:
    """Waits until the attempt has no pod."""
    async with asyncio.timeout(30):
        while namespace.objects("pods", f"sandboxId={key.sandbox_id}"):
            await asyncio.sleep(0.1)


async def test_who_hears_of_a_deletion_by_a_list_saves_the_output_too(
    engine: Engine, namespace: Namespace, watched: Watched
) -> None:
    launch = engine.launch("echo out; sleep 60")
    await printing(watched, launch)
    namespace.delete(namespace.path("pods", pod_of(namespace, launch.key)["metadata"]["name"]))
    async with engine.backend() as other:
        await other.reaches(launch.key, Phase.RUNNING)
        seen = await other.reaches(launch.key, Phase.ENDED)
        await is_gone(namespace, launch.key)
        assert (await other.backend.output(launch.key, seen.run_uid, 1000)).tail == b"out\n"


def test_a_row_whose_job_somebody_deletes_says_so_with_its_output(made: Stage) -> None:
    assert made.namespace is not None
    sandbox = ask(made, "echo out; sleep 60")
    reaches(made, sandbox, "the start", lambda row: row["state"] == "running")
    made.namespace.delete(made.namespace.path("jobs", f"sandbox-{sandbox}"))
    found = finishes(made, sandbox)
    assert (found["state"], found["reason"]) == ("failed", "Deleted")
    assert found["output"] == "out\n"


async def test_what_is_evicted_says_so_and_leaves_the_output_so_far(
    engine: Engine, namespace: Namespace, watched: Watched
) -> None:
    launch = engine.launch("echo out; sleep 60")
    await printing(watched, launch)
    name = pod_of(namespace, launch.key)["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    namespace.admin.call("POST", namespace.path("pods", f"{name}/eviction"), eviction)
    seen = await watched.reaches(launch.key, Phase.ENDED)
    assert seen.outcome is not None
    assert (seen.outcome.state, seen.outcome.reason) == (State.FAILED, Reason.EVICTED)
    assert (await watched.backend.output(launch.key, seen.run_uid, 1000)).tail == b"out\n"


@pytest.mark.parametrize("look", [False, True])
async def test_a_foreign_job_of_that_name_is_left_alone(
    engine: Engine, namespace: Namespace, look: bool, watched: Watched
) -> None:
    launch = engine.launch("true")
    foreign = manifest.job_manifest(launch, IMAGE, str(uuid4()), JobOptions(), 600)
    with present(namespace, "jobs", foreign):
        uid = find(namespace, "jobs", launch.key.name)["metadata"]["uid"]
        with pytest.raises(RequestRejectedError, match=launch.key.name) as refused:
            await watched.backend.create(launch, look=look)
        assert refused.value.outcome.reason is Reason.NAME_CONFLICT
        await watched.backend.delete(launch.key, None)
        await watched.backend.kill(launch.key, uid)
        with pytest.raises(RunNotFoundError):
            await watched.backend.release(launch.key, uid)
        await watched.lists(lambda listing: not listing.runs and not listing.pending)
        still = find(namespace, "jobs", launch.key.name)["metadata"]
        assert still["uid"] == uid
        assert "deletionTimestamp" not in still


@pytest.mark.parametrize("owned", [True, False])
def test_a_second_pod_is_removed_and_the_run_goes_on(made: Stage, owned: bool) -> None:
    assert made.namespace is not None
    (sandbox,) = made.insert([("sleep 6; exit 3", 60)])
    reaches(made, sandbox, "the start", lambda row: row["state"] == "running")
    second = doubled(find(made.namespace, "jobs", f"sandbox-{sandbox}"))
    if not owned:  # then its Job's controller leaves it alone
        del second["metadata"]["ownerReferences"], second["metadata"]["finalizers"]
        for label in manifest.OWNERSHIP:
            del second["metadata"]["labels"][label]
    path = made.namespace.path("pods", second["metadata"]["name"])
    with present(made.namespace, "pods", second):
        made.wait("the second pod's end", lambda: not there(made.namespace, path))
        assert row(made, sandbox)["state"] == "running"
        found = finishes(made, sandbox)
    assert (found["reason"], found["exit_code"], found["attempt"]) == ("NonZeroExit", 3, 1)
    assert made.starts() == {str(sandbox): 1}


def there(namespace: Namespace | None, path: str) -> bool:
    """Whether there is such an object."""
    assert namespace is not None
    try:
        namespace.admin.call("GET", path)
    except Refusal as error:
        return error.status != 404
    return True


def doubled(job: Any) -> dict[str, Any]:
    """A second pod of that Job, as its controller makes the first."""
    meta, template = job["metadata"], job["spec"]["template"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
    return {
        "metadata": {
            "name": f"{meta['name']}-zzzzz",
            "labels": template["metadata"]["labels"],
            "finalizers": ["batch.kubernetes.io/job-tracking"],
            "ownerReferences": [owner | {"controller": True, "blockOwnerDeletion": True}],
        },
        "spec": template["spec"],
    }


async def test_a_name_that_is_being_deleted_is_waited_out(
    engine: Engine, namespace: Namespace, watched: Watched
) -> None:
    launch = engine.launch("exit 4")
    first = await watched.create(launch)
    path = namespace.path("jobs", launch.key.name)
    namespace.admin.call("PATCH", path, {"metadata": {"finalizers": ["example.com/hold"]}}, MERGE)
    try:
        namespace.delete(path)
        for look in (False, True):
            with pytest.raises(TransientEngineError, match="being deleted"):
                await watched.backend.create(launch, look=look)
    finally:
        namespace.admin.call("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)
    second = await watched.create(launch)
    assert second.run_uid != first.run_uid
    await watched.backend.release(launch.key, second.run_uid)
    seen = await watched.reaches(launch.key, Phase.ENDED)
    assert seen.outcome is not None
    assert seen.outcome.exit_code == 4


# What it may use


@pytest.mark.parametrize(
    ("command", "reason", "code", "words"),
    [
        ("tail /dev/zero", Reason.OOM_KILLED, 137, "memory_mib = 64"),
        ("tail /dev/zero; exit 3", Reason.NON_ZERO_EXIT, 3, "memory_mib = 64"),
        ("tail /dev/zero || true", Reason.COMPLETED, 0, "memory_mib = 64"),
        ("exit 137", Reason.NON_ZERO_EXIT, 137, "signal 9"),
        ("kill -9 -1; exit 5", Reason.NON_ZERO_EXIT, 5, "5"),
        (": > /dev/termination-log; exit 6", Reason.NON_ZERO_EXIT, 6, "6"),
    ],
)
async def test_a_lack_of_memory_is_told_from_an_exit(
    engine: Engine, command: str, reason: Reason, code: int, words: str, watched: Watched
) -> None:
    _, outcome, _ = await ended(watched, engine.launch(command))
    assert (outcome.reason, outcome.exit_code) == (reason, code)
    assert words in (outcome.message or "")


@pytest.mark.parametrize("file", ["/dev/termination-log", "/.sandbox/state"])
async def test_files_that_no_kubelet_counts_are_bounded_and_the_end_is_told(
    engine: Engine, file: str, watched: Watched
) -> None:
    command = f"dd if=/dev/zero of={file} bs=1M count=9 conv=notrunc 2>&1; wc -c <{file}; exit 5"
    _, outcome, output = await ended(watched, engine.launch(command, disk_mib=1))
    assert int(output.split()[-1]) == 2 << 20
    assert (outcome.reason, outcome.exit_code) == (Reason.NON_ZERO_EXIT, 5)


async def test_a_container_that_its_node_starts_again_does_not_run_its_command_again(
    engine: Engine, namespace: Namespace, watched: Watched
) -> None:
    launch = engine.launch("echo ran; sleep 30; exit 5")
    running = await printing(watched, launch)
    (pod,) = namespace.objects("pods", f"sandboxId={launch.key.sandbox_id}")
    image = IMAGE.replace("busybox:stable", "debian:bookworm-slim")
    other = {"spec": {"containers": [{"name": "sandbox", "image": image}]}}  # restarts it, whatever the policy says
    path = namespace.path("pods", pod["metadata"]["name"])
    namespace.admin.call("PATCH", path, other, content="application/strategic-merge-patch+json")
    ended = await watched.reaches(launch.key, Phase.ENDED)
    assert ended.outcome is not None
    assert (ended.outcome.reason, ended.outcome.exit_code) == (Reason.KILLED, None)
    output = await watched.backend.output(launch.key, running.run_uid, 1000)
    assert (output.tail, output.truncated) == (b"", True)  # the second start's: it ran nothing


async def test_a_sandbox_can_do_little(engine: Engine, namespace: Namespace, watched: Watched) -> None:
    command = """
    id -u; id -g
    grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status
    for file in /x /etc/x /usr/x /var/x; do echo x 2>/dev/null >$file && echo wrote $file; done
    ls /var/run/secrets/kubernetes.io/serviceaccount 2>/dev/null && echo token
    env | grep NEIGHBOUR
    pwd; echo $HOME
    for file in /work/x /tmp/x; do echo echo ran >$file && sh $file; done
    """
    service = {"metadata": {"name": "neighbour"}, "spec": {"ports": [{"port": 80}]}}
    with present(namespace, "services", service):
        _, outcome, output = await ended(watched, engine.launch(command))
    assert outcome.state is State.SUCCEEDED
    words = b"1000 1000 CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 /work /work ran ran"
    assert output.split() == words.split()


async def test_dollars_are_left_alone(engine: Engine, watched: Watched) -> None:
    launch = engine.launch("echo '$(HOSTNAME) $$ $$(X)' \"$X\" '$(X)'", env={"X": "$(HOME) $$$$ $("})
    _, _, output = await ended(watched, launch)
    assert output == b"$(HOSTNAME) $$ $$(X) $(HOME) $$$$ $( $(X)\n"


async def test_a_gibibyte_of_output_is_read_in_little_memory(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, watched: Watched
) -> None:
    monkeypatch.setattr(engines, "DEADLINE", 100.0)
    command = f"head -c {GIB} /dev/zero | tr '\\0' x; echo; echo end; exit 7"
    seen = await watched.run(engine.launch(command, cpu_millis=2000, disk_mib=2048, timeout=100))
    assert seen.outcome is not None
    assert seen.outcome.exit_code == 7
    tracemalloc.start()
    try:
        output = await watched.backend.output(seen.key, seen.run_uid, 1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20
    whole = b"x" * (1 << 20) + b"\nend\n"
    assert len(output.tail) <= 1 << 20
    assert whole.endswith(output.tail)  # all of it, but where its node just began a new file and shows that alone
    assert output.truncated


# No room, no image


def test_an_image_that_does_not_exist_fails_its_row_at_once(made: Stage) -> None:
    found = finishes(made, ask(made, "true", image="localhost:5000/nothing:here"))  # not at the start deadline: 600 s
    assert (found["state"], found["reason"], found["exit_code"]) == ("failed", "ImagePullFailed", None)
    assert "localhost:5000/nothing:here: not found" in found["message"]


@pytest.mark.parametrize("made", [{"START_DEADLINE_SECONDS": 30}], indirect=True)
def test_what_no_node_has_room_for_says_so_and_ends_at_the_start_deadline(made: Stage) -> None:
    sandbox = ask(made, "true", cpu_millis=256_000)
    reaches(made, sandbox, "its reason to wait", lambda row: "Insufficient cpu" in (row["waiting"] or ""))
    found = finishes(made, sandbox)
    assert (found["state"], found["reason"]) == ("failed", "Unschedulable")
    assert "Insufficient cpu" in found["message"]


def test_without_room_for_pods_a_row_says_why_it_waits_and_then_runs(made: Stage) -> None:
    assert made.namespace is not None
    with quota(made.namespace, pods="0"):
        sandbox = ask(made, "echo ran")
        waiting = reaches(made, sandbox, "a reason to wait", lambda row: row["waiting"] is not None)
        assert f"its Job sandbox-{sandbox} has no pod yet: a full quota" in waiting["waiting"]
    found = finishes(made, sandbox, 70)
    assert (found["state"], found["output"], found["attempt"]) == ("succeeded", "ran\n", 1)


def test_without_room_for_jobs_a_row_says_why_it_waits_and_then_runs(made: Stage) -> None:
    assert made.namespace is not None
    with quota(made.namespace, count__jobs_batch="0"):
        sandbox = ask(made, "echo ran")
        waiting = reaches(made, sandbox, "a reason to wait", lambda row: row["waiting"] is not None)
        assert "exceeded quota: full" in waiting["waiting"]
        assert waiting["state"] == "launching"
    found = finishes(made, sandbox)
    assert (found["state"], found["output"], found["attempt"]) == ("succeeded", "ran\n", 1)


async def test_a_full_quota_does_not_hide_a_job_that_is_there(
    engine: Engine, namespace: Namespace, watched: Watched
) -> None:
    launch = engine.launch("exit 4")
    made = await watched.create(launch)
    with quota(namespace, count__jobs_batch="0"):
        with pytest.raises(TransientEngineError, match="exceeded quota"):  # in the place of a conflict
            await watched.backend.create(launch, look=False)
        again = await watched.backend.create(launch, look=True)
        assert again is not None
        assert again.run_uid == made.run_uid
        await watched.backend.release(launch.key, made.run_uid)
        seen = await watched.reaches(launch.key, Phase.ENDED)
    assert seen.outcome is not None
    assert seen.outcome.exit_code == 4


@pytest.mark.parametrize("made", [{"START_DEADLINE_SECONDS": 15}], indirect=True)
def test_a_row_above_a_limit_range_says_so_and_ends_at_the_start_deadline(made: Stage) -> None:
    assert made.namespace is not None
    limits = {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}
    with present(made.namespace, "limitranges", {"metadata": {"name": "small"}, "spec": limits}):
        sandbox = ask(made, "true", cpu_millis=2000)
        waiting = reaches(made, sandbox, "a reason to wait", lambda row: row["waiting"] is not None)
        assert "a limit range" in waiting["waiting"]
        found = finishes(made, sandbox)
    assert (found["state"], found["reason"]) == ("failed", "StartTimeout")
    assert "a limit range" in found["message"]


def test_what_the_api_refuses_fails_its_row_with_its_words_and_the_next_succeeds(made: Stage) -> None:
    assert made.namespace is not None
    with policy(made.namespace, "!c.image.contains('forbidden')", "this image is not allowed here"):
        bad, good = ask(made, "true", image="localhost:5000/forbidden:1"), ask(made, "true")
        found = finishes(made, bad)
        assert (found["state"], found["reason"], found["attempt"]) == ("failed", "InvalidRequest", 1)
        assert "this image is not allowed here" in found["message"]
        assert finishes(made, good)["state"] == "succeeded"


@contextmanager
def policy(namespace: Namespace, rule: str, message: str) -> Iterator[None]:
    """An admission policy on each container `c` of Jobs of this namespace, once it is in force."""
    name, admin = f"policy-{namespace.name}", namespace.admin
    resources = [
        {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]},
    ]
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}}
    expression = f"object.spec.template.spec.containers.all(c, {rule})"
    spec = {
        "matchConstraints": {"resourceRules": resources},
        "validations": [{"expression": expression, "message": message}],
    }
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": here}
    meta = {"name": name}
    admin.call("POST", f"{POLICIES}ies", {"metadata": meta, "spec": spec})
    try:
        admin.call("POST", f"{POLICIES}ybindings", {"metadata": meta, "spec": binding})
        until = time.monotonic() + 30
        while not refuses(namespace, "localhost:5000/forbidden:1"):
            assert time.monotonic() < until, "the policy never came into force"
            time.sleep(0.2)
        yield
    finally:
        namespace.delete(f"{POLICIES}ybindings/{name}")
        namespace.delete(f"{POLICIES}ies/{name}")


def refuses(namespace: Namespace, image: str) -> bool:
    """Whether a Job of that image is refused; none is made."""
    body = manifest.job_manifest(Launch(Key(uuid4(), 1), "true", 1), image, str(uuid4()), JobOptions(), 600)
    try:
        namespace.admin.call("POST", f"{namespace.path('jobs')}?dryRun=All", body)
    except Refusal as error:
        return error.status == 422
    return False


# After its end


async def test_a_job_stays_until_it_is_recorded_and_a_while_after(
    engine: Engine, namespace: Namespace, watched: Watched
) -> None:
    launch = engine.launch("exit 3")
    seen, _, _ = await ended(watched, launch)
    before = find(namespace, "jobs", launch.key.name)
    assert "ttlSecondsAfterFinished" not in before["spec"]
    assert RECORDED not in before["metadata"].get("annotations", {})
    await watched.backend.delete(launch.key, seen.run_uid)
    after = find(namespace, "jobs", launch.key.name)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["ttlSecondsAfterFinished"] == 60
    assert abs(time.time() - float(after["metadata"]["annotations"][RECORDED])) < 60
    await watched.lists(lambda listing: not listing.runs and not listing.pending)


def test_a_row_that_is_cleaned_leaves_its_job_to_be_looked_at(made: Stage) -> None:
    assert made.namespace is not None
    sandbox = ask(made, "echo out")
    reaches(made, sandbox, "the clean-up", lambda row: row["cleaned_at"] is not None)
    job = find(made.namespace, "jobs", f"sandbox-{sandbox}")
    assert job["spec"]["ttlSecondsAfterFinished"] == 60
    assert made.leftovers() == []


# Where it cannot begin


def settings(**options: Any) -> Settings:
    return Settings(database_url="postgresql://x", sandbox_backend="kubernetes", sandbox_job_options=options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"runtimeClassName": 5}, "runtimeClassName"),
        ({"nodeSelector": ["x"]}, "nodeSelector"),
        ({"nodeSelector": {"x": 1}}, "nodeSelector"),
        ({"tolerations": "x"}, "tolerations"),
        ({"tolerations": {"key": "x"}}, "tolerations"),
        ({"imagePullSecrets": "registry"}, "imagePullSecrets"),
        ({"imagePullSecrets": [{"name": "registry"}]}, "imagePullSecrets"),
        ({"hostNetwork": True}, "hostNetwork is no option; there are runtimeClassName, "),
    ],
    ids=str,
)
def test_wrong_job_options_are_refused_with_their_name(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match="SANDBOX_JOB_OPTIONS: ") as refused:
        create_backend(settings(**options))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def checked(backend: KubernetesBackend) -> str:
    """The engine's identity."""

    async def go() -> str:
        try:
            return await backend.open(uuid4())
        finally:
            await backend.close()

    return asyncio.run(go())


def trouble(backend: KubernetesBackend) -> str:
    """What it says of its opening, in one line."""
    with pytest.raises(BackendUnavailableError) as unavailable:
        checked(backend)
    words = str(unavailable.value)
    assert "\n" not in words
    return words


@pytest.mark.parametrize(
    "options",
    [
        JobOptions(tolerations=[{"key": "x", "operator": "Nonsense"}]),
        JobOptions(tolerations=[{"key": ["x"]}]),
        JobOptions(nodeSelector={"not a label": "x"}),
        JobOptions(runtimeClassName="Not A Name"),
        JobOptions(queue="not a label"),
    ],
    ids=str,
)
def test_job_options_that_the_cluster_refuses_are_named_at_the_start(namespace: Namespace, options: JobOptions) -> None:
    words = trouble(namespace.backend(options=options))
    assert "SANDBOX_JOB_OPTIONS is wrong" in words


def test_a_namespace_that_does_not_exist_is_named(namespace: Namespace) -> None:
    backend = KubernetesBackend("no-such-namespace", IMAGE, kubeconfig=os.environ.get("KUBECONFIG"))
    assert "no-such-namespace does not exist" in trouble(backend)
    assert "no-such-namespace" in trouble(
        KubernetesBackend("no-such-namespace", IMAGE, kubeconfig=namespace.kubeconfig)
    )


def test_a_login_without_rights_is_told_which(namespace: Namespace) -> None:
    less = make_namespace([])
    try:
        words = trouble(less.backend())
    finally:
        less.remove()
    assert 'cannot create resource "jobs"' in words


@pytest.mark.parametrize("server", ["https://127.0.0.1:1", "https://no-such-host.invalid", "http://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_named(namespace: Namespace, tmp_path: Path, server: str) -> None:
    content = yaml.safe_load(Path(namespace.kubeconfig).read_text())
    content["clusters"][0]["cluster"]["server"] = server
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    words = trouble(KubernetesBackend(namespace.name, IMAGE, kubeconfig=str(path)))
    assert f"the Kubernetes API at {server} does not answer" in words


@pytest.mark.parametrize("text", [None, "", "nonsense: [", "a: b", "[]", "apiVersion: v1\nkind: Config\n"], ids=repr)
def test_a_kubeconfig_that_is_none_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    words = trouble(KubernetesBackend("x", IMAGE, kubeconfig=str(path)))
    assert "set KUBECONFIG, or run in a pod" in words


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"SANDBOX_NAMESPACE": "no-such-namespace"}, "no-such-namespace"),
        ({"KUBECONFIG": "/nowhere/kubeconfig"}, "set KUBECONFIG"),
        ({"SANDBOX_JOB_OPTIONS": '{"runtimeClassName": 5}'}, "SANDBOX_JOB_OPTIONS: runtimeClassName"),
        ({"SANDBOX_JOB_OPTIONS": '{"gpu": 1}'}, "gpu is no option"),
        ({"SANDBOX_JOB_OPTIONS": "gvisor"}, "must be a JSON object"),
    ],
    ids=str,
)
def test_a_controller_that_cannot_begin_says_why_in_one_line(
    namespace: Namespace, database: str, changed: dict[str, str], words: str
) -> None:
    asked = {"DATABASE_URL": database, "SANDBOX_BACKEND": "kubernetes", "SANDBOX_NAMESPACE": namespace.name}
    env = os.environ | asked | {"KUBECONFIG": namespace.kubeconfig, "HTTP_PORT": "0"} | changed
    done = subprocess.run(
        [sys.executable, "-m", "controller", "run"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("run: ")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


async def test_a_check_makes_nothing(engine: Engine, namespace: Namespace, watched: Watched) -> None:
    await watched.lists(lambda listing: not listing.runs and not listing.pending)
    assert namespace.objects("jobs", f"installation={engine.installation}") == []


def test_a_check_does_not_mind_a_full_quota(namespace: Namespace) -> None:
    with quota(namespace, count__jobs_batch="0", pods="0"):
        assert checked(namespace.backend()).startswith("kubernetes:")


def test_another_namespace_is_another_engine(namespace: Namespace) -> None:
    other = make_namespace()
    try:
        assert checked(other.backend()) != checked(namespace.backend())
    finally:
        other.remove()
