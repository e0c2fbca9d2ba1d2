"""What befalls a cluster and its database while controllers work: every row ends with the truth, and nothing twice.

the Job controller makes a second pod          test_a_surplus_pod_…
somebody deletes a Job or its pod              test_what_is_deleted_…, test_a_job_that_goes_…
drain, preemption, memory, a lost node         test_a_run_that_was_put_out_…
a pod is gone before its end was read          test_a_log_that_is_gone_…, test_a_run_that_went_unseen_…
the API is down, busy, forgetful, silent       test_an_api_…, test_a_busy_api_…, test_news_of_…, test_a_version_…,
                                               test_a_watch_…, test_a_token_…, test_a_silent_watch_…,
                                               test_errors_…, test_credentials_…
no room, no right, no consent                  test_a_full_quota_…, test_a_missing_right_…, test_a_policy_…
a name that is not free yet                    test_a_name_…
the database drops connections and commits     test_connections_…, test_commits_…
notifications do not come                      test_the_poll_alone_…
a cancel at every moment                       test_a_cancel_…
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg.rows import DictRow

from controller.backends.kubernetes.api import ApiConfig
from controller.db.store import Store
from controller.errors import DatabaseUnavailableError
from tests.support.fake_kubernetes.api import Answer
from tests.support.fake_kubernetes.scene import Scene, play
from tests.support.fake_kubernetes.store import JOBS, PODS
from tests.support.proxy import Proxy

BUSY = Answer(503, "ServiceUnavailable", "no")


def ended(row: DictRow) -> tuple[str, str, int | None]:
    """How a row ended."""
    return row["state"], row["reason"], row["exit_code"]


# A second pod


@pytest.mark.parametrize("code", [0, 3])
async def test_a_surplus_pod_beside_one_that_is_not_bound_never_starts(
    database: str, tmp_path: Path, code: int
) -> None:
    async with play(database, tmp_path) as scene:
        scene.cluster.job_controller.on = False
        async with scene.control():
            sandbox = await scene.asked.insert(f"echo hi; sleep 0.3; exit {code}")
            name = f"sandbox-{sandbox}"
            await scene.cluster.until(lambda: scene.cluster.job(name) is not None)
            scene.cluster.make_pod(name)
            scene.cluster.double(name)
            scene.cluster.job_controller.on = True
            scene.cluster.resync()
            row = await scene.asked.cleaned(sandbox)
        assert ended(row) == ("failed" if code else "succeeded", "NonZeroExit" if code else "Completed", code)
        assert row["attempt"] == 1
        assert await scene.output(sandbox) == "hi\n"
        assert_job_ended(scene, name, "Failed" if code else "Complete")


async def test_a_surplus_pod_beside_one_that_runs_never_starts_and_ends_nothing(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            sandbox, pod = await scene.running("echo hi; sleep 1.5")
            name = f"sandbox-{sandbox}"
            surplus = scene.cluster.double(name)["metadata"]["name"]
            await scene.cluster.until(lambda: scene.cluster.pod(surplus) is None)
            assert (scene.cluster.pod(pod) or {})["status"]["phase"] == "Running"
            row = await scene.asked.cleaned(sandbox)
        assert ended(row) == ("succeeded", "Completed", 0)
        assert await scene.output(sandbox) == "hi\n"
        assert_job_ended(scene, name, "Complete")


async def test_a_surplus_pod_beside_one_that_has_ended_never_starts_and_changes_no_outcome(
    database: str, tmp_path: Path
) -> None:
    async with play(database, tmp_path) as scene:
        made: list[Any] = []

        def double(pod: str) -> None:
            made.append(scene.cluster.double(pod[:44])["metadata"]["uid"])

        scene.requests.meet("get", "pods/log", double)
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; sleep 0.3; exit 3")
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
            await scene.cluster.until(lambda: all(pod["metadata"]["uid"] not in made for pod in scene.cluster.pods()))
        assert made
        assert ended(row) == ("failed", "NonZeroExit", 3)
        assert await scene.output(sandbox) == "hi\n"


def assert_job_ended(scene: Scene, name: str, kind: str) -> None:
    """Its Job is there, and says that it ended so."""
    conditions = (scene.cluster.job(name) or {})["status"]["conditions"]
    assert [one["type"] for one in conditions if one["type"] in ("Complete", "Failed")] == [kind]


# Deleted by hand


DELETIONS: Mapping[str, Callable[[Scene, str, str], None]] = {
    "job": lambda scene, job, pod: scene.cluster.delete(JOBS, job, propagationPolicy="Background"),
    "job, pod first": lambda scene, job, pod: scene.cluster.delete(JOBS, job, propagationPolicy="Foreground"),
    "job, pod orphaned": lambda scene, job, pod: scene.cluster.delete(JOBS, job, propagationPolicy="Orphan"),
    "pod": lambda scene, job, pod: scene.cluster.delete(PODS, pod),
    "pod by force": lambda scene, job, pod: scene.cluster.remove(PODS, pod),
}
BY_HAND = pytest.mark.parametrize("deletion", DELETIONS.values(), ids=DELETIONS.keys())


@BY_HAND
async def test_what_is_deleted_before_its_bind_runs_once_under_another_attempt_or_name(
    database: str, tmp_path: Path, deletion: Callable[[Scene, str, str], None]
) -> None:
    """The bind is under way, and waits for a transaction of its requester's."""

    async with play(database, tmp_path) as scene:
        scene.cluster.job_controller.on = False
        async with scene.control(sandbox_lease_seconds=10):
            sandbox = await scene.asked.insert("echo hi; exit 3")
            job = f"sandbox-{sandbox}"
            await scene.cluster.until(lambda: scene.cluster.job(job) is not None)
            async with await psycopg.AsyncConnection.connect(database) as requester:
                await requester.execute("select 1 from sandboxes for update")
                scene.cluster.job_controller.on = True
                scene.cluster.resync()
                pod = await scene.pod(sandbox)
                await waits_for_lock(scene)
                deletion(scene, job, pod)
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert ended(row) == ("failed", "NonZeroExit", 3)
        assert row["runs"] == 0
        assert await scene.output(sandbox) == "hi\n"
        assert sum(scene.cluster.starts.values()) == 1


async def waits_for_lock(scene: Scene) -> None:
    """Until a controller's statement waits for somebody's transaction."""
    statement = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    while not await scene.asked.rows(statement):
        await asyncio.sleep(0.01)


@BY_HAND
async def test_what_is_deleted_between_bind_and_release_runs_once(
    database: str, tmp_path: Path, deletion: Callable[[Scene, str, str], None]
) -> None:
    """The very request that would take the gate off comes too late."""

    async with play(database, tmp_path) as scene:

        def delete(pod: str) -> None:
            deletion(scene, pod[:44], pod)

        scene.requests.meet("patch", "pods", delete)
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; exit 3")
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert ended(row) == ("failed", "NonZeroExit", 3)
        assert row["runs"] == 0
        assert await scene.output(sandbox) == "hi\n"
        assert sum(scene.cluster.starts.values()) == 1


@BY_HAND
async def test_what_is_deleted_while_its_gate_cannot_be_taken_off_runs_once_or_is_lost(
    database: str, tmp_path: Path, deletion: Callable[[Scene, str, str], None]
) -> None:
    """A release went unanswered, so only the pod itself can tell that it never started."""

    async with play(database, tmp_path) as scene:
        scene.requests.meet("patch", "pods", BUSY, 1000)
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; exit 3")
            await scene.asked.until(sandbox, lambda row: row["waiting"] is not None and row["run_uid"] is not None)
            deletion(scene, f"sandbox-{sandbox}", await scene.pod(sandbox))
            scene.requests.lift()
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert ended(row) == ("failed", "NonZeroExit", 3)
        assert row["runs"] == 0
        assert sum(scene.cluster.starts.values()) == 1


@BY_HAND
async def test_what_is_deleted_while_it_runs_says_so_and_is_not_run_again(
    database: str, tmp_path: Path, deletion: Callable[[Scene, str, str], None]
) -> None:
    """Its node leaves it a moment to be read."""
    graceful = deletion not in (DELETIONS["job, pod orphaned"], DELETIONS["pod by force"])

    async with play(database, tmp_path) as scene:
        async with scene.control():
            sandbox, pod = await scene.running(f"echo hi; sleep {60 if graceful else 1}", max_attempts=3)
            scene.cluster.kubelet.on = not graceful
            deletion(scene, f"sandbox-{sandbox}", pod)
            if graceful:
                await scene.cluster.until(lambda: bool(scene.requests.of("get", "pods/log")))
            scene.cluster.kubelet.on = True
            scene.cluster.resync()
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        if deletion is DELETIONS["pod by force"]:
            assert ended(row) == ("lost", "Deleted", None)
        else:
            assert ended(row) == (("failed", "Deleted", 137) if graceful else ("succeeded", "Completed", 0))
            assert await scene.output(sandbox) == "hi\n"
        assert row["attempt"] == sum(scene.cluster.starts.values()) == 1


@BY_HAND
async def test_what_is_deleted_after_its_end_keeps_its_outcome(
    database: str, tmp_path: Path, deletion: Callable[[Scene, str, str], None]
) -> None:
    async with play(database, tmp_path) as scene:

        def delete(pod: str) -> None:
            deletion(scene, pod[:44], pod)

        scene.requests.meet("get", "pods/log", delete)
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; sleep 0.3; exit 3")
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        if deletion is DELETIONS["job, pod orphaned"]:
            assert await scene.output(sandbox) == "hi\n"


@pytest.mark.parametrize("blind", [False, True])
async def test_a_job_that_goes_before_it_has_a_pod_is_made_again(database: str, tmp_path: Path, blind: bool) -> None:
    """The quota has no room for its pod; and where the watch is silent too, only a list tells."""

    async with play(database, tmp_path, cluster={"pod_quota": 0}) as scene:
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; exit 3")
            job = f"sandbox-{sandbox}"
            await scene.cluster.until(lambda: scene.cluster.job(job) is not None)
            lists = len(scene.requests.of("list", "jobs"))
            await scene.cluster.until(lambda: len(scene.requests.of("list", "jobs")) > lists + 1)
            if blind:
                scene.api.watches.mute()
            made = scene.api.requests["create", "jobs"]
            scene.cluster.delete(JOBS, job, propagationPolicy="Background")
            await scene.cluster.until(lambda: scene.api.requests["create", "jobs"] > made, 15)
            assert not scene.cluster.pods()
            scene.cluster.pod_quota = None
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["runs"]) == (("failed", "NonZeroExit", 3), 0)
        assert sum(scene.cluster.starts.values()) == 1


# Put out


def preempt(scene: Scene, pod: str) -> None:
    """The scheduler makes room for something more important."""
    told = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempting"}
    scene.cluster.set_status(pod, {"conditions": [told]})
    scene.cluster.delete(PODS, pod)


def run_out_of_memory(scene: Scene, pod: str) -> None:
    """The kernel kills the command for its memory, and the wrapper writes its end down."""
    state = {"exitCode": 137, "reason": "OOMKilled", "message": "started\nexit 137\n"}
    name = (scene.cluster.pod(pod) or {})["spec"]["containers"][0]["name"]
    container = {"name": name, "state": {"terminated": state}}
    scene.cluster.set_status(pod, {"phase": "Failed", "containerStatuses": [container]})


def press(scene: Scene, pod: str) -> None:
    """The kubelet evicts it, as its disk is full."""
    told = {"reason": "Evicted", "message": "The node was low on resource: ephemeral-storage."}
    scene.cluster.kubelet.kill(scene.cluster._ref(PODS, pod), told)


@pytest.mark.parametrize(
    ("befalls", "outcome", "most"),
    [
        (lambda scene, pod: scene.cluster.evict(pod), ("failed", "Evicted", 137), 2),
        (press, ("failed", "Evicted", 137), 1),
        (preempt, ("failed", "Evicted", 137), 1),
        (run_out_of_memory, ("failed", "OOMKilled", 137), 2),
        (lambda scene, pod: scene.cluster.node_lost(), ("lost", "NodeLost", None), 2),
    ],
    ids=["drain", "eviction", "preemption", "memory", "node lost"],
)
async def test_a_run_that_was_put_out_says_why_and_runs_again_only_where_that_is_asked(
    database: str,
    tmp_path: Path,
    befalls: Callable[[Scene, str], None],
    outcome: tuple[str, str, int | None],
    most: int,
) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            sandbox, pod = await scene.running(max_attempts=most)
            befalls(scene, pod)
            if most == 2 and outcome[0] == "failed":
                again = await scene.asked.until(sandbox, lambda row: row["attempt"] == 2 and row["state"] == "running")
                assert again["runs"] == 1
                assert await scene.attempts(sandbox) == [(1, outcome[1])]
                (pod,) = [one["metadata"]["name"] for one in scene.cluster.pods(f"sandbox-{sandbox}-2")]
                befalls(scene, pod)
            row = await scene.asked.cleaned(sandbox)
        assert ended(row) == outcome
        assert row["attempt"] == (most if outcome[0] == "failed" else 1)
        assert sum(scene.cluster.starts.values()) == row["attempt"]


# Gone before it was read


async def test_a_log_that_is_gone_does_not_hold_up_the_outcome(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        scene.requests.meet("get", "pods/log", lambda pod: scene.cluster.remove(PODS, pod))
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; sleep 0.3; exit 3")
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) is None


@pytest.mark.parametrize("kind", ["pod", "job"])
async def test_a_run_that_went_unseen_is_lost_and_not_run_again(database: str, tmp_path: Path, kind: str) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            sandbox, pod = await scene.running("sleep 1.2; exit 3", max_attempts=3)
            await scene.api.stop()
            await scene.cluster.until(lambda: (scene.cluster.pod(pod) or {})["status"]["phase"] == "Failed")
            if kind == "job":
                scene.cluster.delete(JOBS, f"sandbox-{sandbox}", propagationPolicy="Background")
            else:
                scene.cluster.remove(PODS, pod)
            await scene.cluster.until(lambda: scene.cluster.pod(pod) is None)
            await scene.api.start()
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert (ended(row), row["attempt"]) == (("lost", "Lost", None), 1)
        assert sum(scene.cluster.starts.values()) == 1


# The API


async def test_an_api_that_is_down_at_any_moment_only_delays(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            before = [await scene.running(f"echo hi; sleep {seconds}; exit 3") for seconds in (0.8, 2.5)]
            await scene.api.stop()
            meanwhile = await scene.asked.insert("exit 4")
            waits = await scene.asked.until(meanwhile, lambda row: row["waiting"] is not None)
            assert "does not answer" in waits["waiting"]
            doomed = await scene.asked.insert("exit 5")
            await scene.asked.until(doomed, lambda row: row["state"] == "launching")
            await scene.asked.cancel(doomed)
            await scene.cluster.until(lambda: _phase(scene, before[0][1]) == "Failed")
            await scene.api.start()
            rows = [await scene.asked.cleaned(one) for one in (before[0][0], before[1][0], meanwhile, doomed)]
        assert [ended(row) for row in rows] == [
            ("failed", "NonZeroExit", 3),
            ("failed", "NonZeroExit", 3),
            ("failed", "NonZeroExit", 4),
            ("cancelled", "Cancelled", None),
        ]
        assert [await scene.output(one) for one, _ in before] == ["hi\n", "hi\n"]
        assert (str(doomed), "1") not in scene.cluster.starts


def _phase(scene: Scene, pod: str) -> str:
    phase: str = (scene.cluster.pod(pod) or {"status": {}})["status"].get("phase", "")
    return phase


REQUESTS = [("create", "jobs"), ("patch", "pods"), ("get", "pods/log"), ("patch", "jobs")]
LOOKS = [("list", "jobs"), ("list", "pods"), ("watch", "jobs"), ("watch", "pods")]


@pytest.mark.parametrize(("verb", "resource"), [*REQUESTS, *LOOKS, ("delete", "jobs")])
async def test_a_busy_api_is_left_alone_for_as_long_as_it_asks(
    database: str, tmp_path: Path, verb: str, resource: str
) -> None:
    async with play(database, tmp_path) as scene:
        busy: list[float] = []

        def refuse(name: str) -> Answer:
            busy.append(time.monotonic())
            return Answer(429, "TooManyRequests", "too many requests", 1)

        async with scene.control():
            await scene.api.watches.opened("pods")
            scene.requests.meet(verb, resource, refuse)
            scene.api.watches.cut()
            scene.make_job(uuid4())  # of no row: it is to be swept
            sandbox = await scene.asked.insert("echo hi; sleep 0.3; exit 3")
            row = await scene.asked.cleaned(sandbox)
            await scene.cluster.until(lambda: bool(busy))
            await scene.cluster.until(lambda: scene.requests.of(verb, resource)[-1] > busy[0])
        later = [at for at in scene.requests.of(verb, resource) if at > busy[0]]
        assert later[0] - busy[0] >= 1.0
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) == "hi\n"


async def test_news_of_a_pod_is_no_reason_to_ask_a_busy_api_again(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path, cluster={"start_delay": 30.0}) as scene:
        async with scene.control():
            sandbox = await scene.asked.insert("sleep 600")
            pod = await scene.pod(sandbox)
            await scene.cluster.until(lambda: "startTime" in (scene.cluster.pod(pod) or {"status": {}})["status"])
            scene.requests.meet("patch", "pods", Answer(429, "TooManyRequests", "too many requests", 1))
            scene.cancel(sandbox)
            await scene.asked.until(sandbox, lambda row: "too many requests" in (row["waiting"] or ""))
            waiting = {"name": "sandbox", "state": {"waiting": {"reason": "ErrImagePull", "message": "slow"}}}
            scene.cluster.set_status(pod, {"containerStatuses": [waiting]})
            row = await scene.asked.cleaned(sandbox)
        _, busy, again = scene.requests.of("patch", "pods")
        assert again - busy >= 1.0
        assert ended(row) == ("cancelled", "Cancelled", None)


@pytest.mark.parametrize("in_stream", [True, False])
async def test_a_version_that_the_api_forgot_is_listed_anew(database: str, tmp_path: Path, in_stream: bool) -> None:
    async with play(database, tmp_path, gone_in_stream=in_stream) as scene:
        for kind in ("jobs", "pods"):
            scene.requests.meet("watch", kind, lambda name: scene.api.compact(), 3)
        async with scene.control(list_seconds=60):
            sandbox = await scene.asked.insert("echo hi; sleep 1; exit 3")
            row = await scene.asked.cleaned(sandbox)
            assert len(scene.requests.of("list", "pods")) >= 2
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) == "hi\n"


async def test_a_watch_that_ends_with_an_error_is_begun_anew(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control(list_seconds=60):
            sandbox, pod = await scene.running("echo hi; sleep 0.5; exit 3")
            scene.api.watches.mute()  # so that the end goes by unseen
            await scene.cluster.until(lambda: _phase(scene, pod) == "Failed")
            for watch in scene.api.watches.open():
                watch.lines.clear()
            scene.api.watches.fail(410, "Expired", "too old resource version")
            scene.api.watches.unmute()
            row = await scene.asked.cleaned(sandbox)
        assert ended(row) == ("failed", "NonZeroExit", 3)


async def test_a_token_that_the_api_forgot_is_no_loss(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control(api=ApiConfig(page=2)):
            every = [(await scene.running("sleep 1.5; exit 3"))[0] for _ in range(7)]
            for kind in ("jobs", "pods"):
                scene.requests.meet("list", kind, lambda name: scene.api.lists.forget(), 6)
            rows = [await scene.asked.cleaned(sandbox) for sandbox in every]
        assert {ended(row) for row in rows} == {("failed", "NonZeroExit", 3)}


async def test_a_silent_watch_hides_nothing_from_the_lists(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            await scene.api.watches.opened("jobs")
            await scene.api.watches.opened("pods")
            scene.api.watches.mute()
            sandbox = await scene.asked.insert("echo hi; sleep 0.5; exit 3")
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) == "hi\n"


async def test_errors_of_the_api_change_no_outcome(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            for verb, resource in [*REQUESTS, *LOOKS, ("get", "jobs"), ("get", "pods"), ("delete", "jobs")]:
                scene.requests.meet(verb, resource, Answer(500, "InternalError", "etcdserver: request timed out"))
                scene.requests.meet(verb, resource, Answer(504, "Timeout", "no answer in time"))
            scene.api.watches.cut()
            sandbox = await scene.asked.insert("echo hi; sleep 0.3; exit 3")
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) == "hi\n"


async def test_credentials_that_ran_out_are_read_anew(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path, token="old") as scene:
        async with scene.control():
            before, _ = await scene.running("echo hi; sleep 1; exit 3")
            scene.api.token = "new"
            scene.api.watches.cut()
            meanwhile = await scene.asked.insert("exit 4")
            waits = await scene.asked.until(meanwhile, lambda row: row["waiting"] is not None)
            assert "Unauthorized" in waits["waiting"]
            scene.api.kubeconfig(scene.kubeconfig)
            rows = [await scene.asked.cleaned(sandbox) for sandbox in (before, meanwhile)]
        assert [ended(row) for row in rows] == [("failed", "NonZeroExit", 3), ("failed", "NonZeroExit", 4)]


# No room, no right


async def test_a_full_quota_is_waited_out_and_named(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path, cluster={"job_quota": 0}) as scene:
        async with scene.control():
            sandbox = await scene.asked.insert("exit 3")
            waits = await scene.asked.until(sandbox, lambda row: row["waiting"] is not None)
            assert "exceeded quota: sandboxes" in waits["waiting"]
            scene.cluster.job_quota = None
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["waiting"]) == (("failed", "NonZeroExit", 3), None)


async def test_a_full_quota_does_not_hide_a_job_from_who_takes_over(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path, cluster={"job_quota": 1}) as scene:
        sandbox = await scene.asked.insert("echo hi; exit 3")
        await scene.crash("after:create")
        async with scene.control():
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) == "hi\n"


async def test_a_full_quota_does_not_hide_a_job_that_is_there_already(database: str, tmp_path: Path) -> None:
    """Its answer is the same as for a new name: forbidden, and not that the name is taken. So it is looked for."""

    async with play(database, tmp_path, cluster={"job_quota": 1}) as scene:
        sandbox = uuid4()
        scene.cluster.job_controller.on = False
        scene.make_job(sandbox, "echo hi; exit 3")
        async with scene.control():
            await scene.asked.insert("echo hi; exit 3", id=sandbox)
            await scene.cluster.until(lambda: bool(scene.requests.of("get", "jobs")))
            scene.cluster.job_controller.on = True
            scene.cluster.resync()
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert len(scene.requests.of("create", "jobs")) == 1


async def test_a_missing_right_is_waited_out_and_named(database: str, tmp_path: Path) -> None:
    words = 'jobs.batch is forbidden: User "system:x" cannot create resource "jobs" in API group "batch"'

    async with play(database, tmp_path) as scene:
        scene.requests.meet("create", "jobs", Answer(403, "Forbidden", words), 1000)
        async with scene.control():
            sandbox = await scene.asked.insert("exit 3")
            waits = await scene.asked.until(sandbox, lambda row: row["waiting"] is not None)
            assert words in waits["waiting"]
            scene.requests.lift()
            row = await scene.asked.cleaned(sandbox)
        assert ended(row) == ("failed", "NonZeroExit", 3)


async def test_a_policy_that_refuses_a_job_ends_its_row_with_its_words(database: str, tmp_path: Path) -> None:
    words = 'admission webhook "policy.example.org" denied the request: no such image here'

    async with play(database, tmp_path) as scene:
        scene.requests.meet("create", "jobs", Answer(403, "Forbidden", words), 1000)
        async with scene.control():
            row = await scene.asked.cleaned(await scene.asked.insert("exit 3", max_attempts=3))
        assert (ended(row), row["attempt"]) == (("failed", "InvalidRequest", None), 1)
        assert words in row["message"]


async def test_a_name_that_is_not_free_yet_is_waited_for(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        sandbox = uuid4()
        scene.make_job(sandbox, holder="test/held")
        scene.cluster.delete(JOBS, f"sandbox-{sandbox}", propagationPolicy="Background")
        async with scene.control():
            await scene.asked.insert("exit 3", id=sandbox)
            waits = await scene.asked.until(sandbox, lambda row: row["waiting"] is not None)
            assert "not free yet" in waits["waiting"]
            scene.cluster.change(JOBS, f"sandbox-{sandbox}", lambda job: job["metadata"].update(finalizers=[]))
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["runs"]) == (("failed", "NonZeroExit", 3), 0)
        assert sum(scene.cluster.starts.values()) == 1


# The database


WRITES = ("bind", "set_waiting", "mark_running", "record", "mark_cleaned")
STATEMENTS = (*WRITES, "claim", "owned_rows", "take_over", "renew", "cancelling")


@pytest.mark.parametrize("side", ["before", "after"])
async def test_connections_that_end_at_any_statement_cost_nothing(database: str, tmp_path: Path, side: str) -> None:
    """All of them, each time: before the statement was sent, or with its answer under way."""
    met: set[str] = set()

    class InterruptedStore(Store):
        """Loses every connection at the first of each statement."""

        async def once(self, name: str, params: Mapping[str, Any]) -> list[DictRow]:
            first = name in STATEMENTS and name not in met
            if first:
                met.add(name)
            if first and side == "before":
                cut_off(database)
            answer = await super().once(name, params)
            if first and side == "after":
                cut_off(database)
                raise DatabaseUnavailableError("the answer was lost")
            return answer

    async with play(database, tmp_path) as scene:
        async with scene.control(sandbox_lease_seconds=1, store_type=InterruptedStore):
            scene.requests.meet("create", "jobs", BUSY)
            sandbox = await scene.asked.insert("echo hi; sleep 1.5; exit 3", max_attempts=2)
            row = await scene.asked.cleaned(sandbox)
        assert met >= set(STATEMENTS)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 2)
        assert await scene.output(sandbox) == "hi\n"
        assert sum(scene.cluster.starts.values()) == 2


@pytest.mark.parametrize(("verb", "resource"), REQUESTS)
async def test_connections_that_end_at_any_request_cost_nothing(
    database: str, tmp_path: Path, verb: str, resource: str
) -> None:
    async with play(database, tmp_path) as scene:
        scene.requests.meet(verb, resource, lambda name: cut_off(database))
        async with scene.control():
            sandbox = await scene.asked.insert("echo hi; sleep 0.3; exit 3")
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert await scene.output(sandbox) == "hi\n"


def cut_off(url: str) -> None:
    """Ends every connection of controllers and listeners."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name <> '' and datname = current_database()"
        )


BACK = {
    "unclaimed": "state = 'queued', epoch = 0, claimed_at = null, claimed_by = null, lease_until = null, engine = null",
    "unbound": "state = 'launching', lease_until = now() - interval '1 second'",
    "unbound, leased": "state = 'launching', lease_until = now() + interval '1 second'",
}


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("moment", "back"),
    [
        (moment, back)
        for moment in ("running", "ended", "recorded")
        for back in BACK
        if moment == "running" or "," not in back
    ],
)
async def test_commits_that_a_failover_lost_start_nothing_again(
    database: str, tmp_path: Path, back: str, moment: str, same: bool
) -> None:
    """The run that is there is adopted, by the same controller or by another."""

    async with play(database, tmp_path) as scene:

        async def run() -> Any:
            sandbox, pod = await scene.running("echo hi; sleep 0.8; exit 3")
            if moment == "ended":
                await scene.api.stop()
                await scene.cluster.until(lambda: _phase(scene, pod) == "Failed")
            if moment == "recorded":
                await scene.asked.cleaned(sandbox)
            return sandbox

        def lose(sandbox: Any) -> None:
            set_back(scene, sandbox, BACK[back])
            cut_off(database)

        if same:
            async with scene.control():
                sandbox = await run()
                lose(sandbox)
                if moment == "ended":
                    await scene.api.start()
                row = await scene.asked.cleaned(sandbox)
        else:
            async with scene.control():
                sandbox = await run()
            lose(sandbox)
            if moment == "ended":
                await scene.api.start()
            async with scene.control():
                row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)
        assert sum(scene.cluster.starts.values()) == 1
        if moment != "recorded":
            assert await scene.output(sandbox) == "hi\n"


def set_back(scene: Scene, sandbox: Any, to: str) -> None:
    """The row as it was before what was committed since."""
    with psycopg.connect(scene.url) as connection:
        connection.execute("set local session_replication_role = replica")
        connection.execute(
            (
                f"update sandboxes set {to}, run_uid = null, launched_at = null, started_at = null,"
                " finished_at = null, cleaned_at = null, exit_code = null, reason = null, message = null where id = %s"
            ).encode(),
            [sandbox],
        )
        connection.execute("delete from sandbox_attempts where sandbox_id = %s", [sandbox])


async def test_the_poll_alone_suffices_where_notifications_no_longer_come(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with Proxy(database) as proxy:
            async with scene.control(listen_url=proxy.url):
                await scene.asked.cleaned(await scene.asked.insert("exit 0"))
                proxy.silence()
                sandbox = await scene.asked.insert("echo hi; exit 3")
                row = await scene.asked.cleaned(sandbox)
                doomed, _ = await scene.running()
                await scene.asked.cancel(doomed)
                assert ended(await scene.asked.cleaned(doomed))[0] == "cancelled"
            assert proxy.accepted == 1
        assert ended(row) == ("failed", "NonZeroExit", 3)


# Cancelled


@pytest.mark.parametrize(
    ("verb", "resource", "starts"),
    [("create", "jobs", 0), ("patch", "pods", None)],
    ids=["at the POST", "at the release"],
)
async def test_a_cancel_at_the_very_moment_of_a_request_is_kept(
    database: str, tmp_path: Path, verb: str, resource: str, starts: int | None
) -> None:
    async with play(database, tmp_path) as scene:
        scene.requests.meet(verb, resource, lambda name: scene.sql("update sandboxes set cancel_requested_at = now()"))
        async with scene.control():
            sandbox = await scene.asked.insert("sleep 600")
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert ended(row) == ("cancelled", "Cancelled", None)
        assert starts is None or sum(scene.cluster.starts.values()) == starts


async def test_a_cancel_between_post_and_bind_starts_nothing(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        scene.cluster.job_controller.on = False
        async with scene.control():
            sandbox = await scene.asked.insert("sleep 600")
            await scene.cluster.until(lambda: scene.cluster.job(f"sandbox-{sandbox}") is not None)
            scene.cancel(sandbox)
            scene.cluster.job_controller.on = True
            scene.cluster.resync()
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert ended(row) == ("cancelled", "Cancelled", None)
        assert not scene.cluster.starts


async def test_a_cancel_between_bind_and_release_starts_nothing(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        scene.requests.meet("patch", "pods", BUSY, 1000)
        async with scene.control():
            sandbox = await scene.asked.insert("sleep 600")
            await scene.asked.until(sandbox, lambda row: row["waiting"] is not None and row["run_uid"] is not None)
            scene.cancel(sandbox)
            row = await scene.asked.cleaned(sandbox)
            scene.requests.lift()
            await scene.swept()
        assert ended(row) == ("cancelled", "Cancelled", None)
        assert not scene.cluster.starts


@pytest.mark.parametrize("taken", [True, False])
async def test_a_cancel_while_it_starts_ends_it_unstarted(database: str, tmp_path: Path, taken: bool) -> None:
    """Its node has taken it and makes the container, or no node has room."""

    async with play(database, tmp_path, cluster={"start_delay": 30.0}) as scene:
        scene.cluster.scheduler.on = taken
        async with scene.control():
            sandbox = await scene.asked.insert("sleep 600")
            await scene.cluster.until(lambda: len(scene.requests.of("patch", "pods")) == 1)
            scene.cancel(sandbox)
            row = await scene.asked.cleaned(sandbox)
            await scene.swept()
        assert ended(row) == ("cancelled", "Cancelled", None)
        assert not scene.cluster.starts


async def test_a_pod_that_gets_a_node_as_it_is_to_be_deleted_is_ended_and_kept(database: str, tmp_path: Path) -> None:
    """Deleted, it could have begun, and would look as if a stranger had deleted it."""

    async with play(database, tmp_path) as scene:
        scene.cluster.scheduler.on = False

        def place(pod: str) -> None:
            scene.cluster.change(PODS, pod, lambda found: found["spec"].update(nodeName="node-1"))

        scene.requests.meet("delete", "pods", place)
        async with scene.control():
            sandbox = await scene.asked.insert("sleep 600")
            await scene.cluster.until(lambda: len(scene.requests.of("patch", "pods")) == 1)  # it is released
            scene.cancel(sandbox)
            row = await scene.asked.cleaned(sandbox)
        assert ended(row) == ("cancelled", "Cancelled", None)
        assert len(scene.requests.of("patch", "pods")) == 2  # its deadline: it is ended, not deleted


async def test_a_cancel_while_it_runs_ends_it(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control():
            sandbox, _ = await scene.running("echo hi; sleep 600", max_attempts=3)
            scene.cancel(sandbox)
            row = await scene.asked.cleaned(sandbox)
        assert (ended(row), row["attempt"]) == (("cancelled", "Cancelled", None), 1)
        assert await scene.output(sandbox) == "hi\n"


async def test_a_cancel_as_it_ends_leaves_its_own_result(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        scene.requests.meet(
            "get", "pods/log", lambda pod: scene.sql("update sandboxes set cancel_requested_at = now()")
        )
        async with scene.control():
            row = await scene.asked.cleaned(await scene.asked.insert("sleep 0.5; exit 3", max_attempts=3))
        assert (ended(row), row["attempt"]) == (("failed", "NonZeroExit", 3), 1)


async def test_a_cancel_at_any_moment_ends_in_one_of_two_truths(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control(), scene.control():
            every = [await scene.asked.insert("sleep 0.1; exit 3") for _ in range(40)]
            for number, sandbox in enumerate(every):
                await asyncio.sleep(0.01 * (number % 3))
                scene.cancel(sandbox)
            rows = [await scene.asked.cleaned(sandbox) for sandbox in every]
        truths = {("cancelled", "Cancelled"), ("failed", "NonZeroExit")}
        assert {(row["state"], row["reason"]) for row in rows} <= truths
        for row in rows:
            assert row["state"] == "cancelled" or scene.cluster.starts[str(row["id"]), "1"] == 1
