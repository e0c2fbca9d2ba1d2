"""Controllers that die, sleep and double on a cluster: the next one ends every row, and no attempt starts twice.

a POST whose answer never came                                        test_a_job_that_was_made_without_an_answer_…
a controller that sleeps past its lease with a POST in its hands      test_a_sleeper_makes_a_job_…
… and with an outcome in its hands                                    test_a_sleeper_records_…
a POST that arrives after the controller that sent it has died        test_a_post_that_outlives_its_controller_…
two controllers at work on everything                                 test_two_controllers_…
no controller for a day                                               test_a_day_without_a_controller_…

A crash at each point of the protocol is proved on real clusters: tests/chaos/test_failpoints.py.
"""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from psycopg.conninfo import conninfo_to_dict

from controller.backends.kubernetes.api import ApiConfig
from tests.support.database import connect, settable_clock
from tests.support.fake_kubernetes.api import Fault
from tests.support.fake_kubernetes.scene import Scene, play
from tests.support.fake_kubernetes.store import JOBS, PODS


@pytest.mark.parametrize("fault", [Fault.REPLY_LOST, Fault.CUT, Fault.SILENT, Fault.SLOW])
async def test_a_job_that_was_made_without_an_answer_is_found_and_runs_once(
    database: str, tmp_path: Path, fault: Fault
) -> None:
    """Cut off or silent, done or not: nobody can tell which, and so it is looked for."""
    async with play(database, tmp_path, slow_seconds=0.4) as scene:
        scene.requests.meet("create", "jobs", fault)
        async with scene.control(api=ApiConfig(answer_seconds=0.3)):
            sandbox = await scene.asked.insert("echo hi; exit 3")
            row = await scene.asked.cleaned(sandbox)
        assert (row["state"], row["reason"], row["exit_code"], row["attempt"]) == ("failed", "NonZeroExit", 3, 1)
        assert await scene.output(sandbox) == "hi\n"
        assert len(scene.requests.of("create", "jobs")) == (1 if fault in (Fault.REPLY_LOST, Fault.SLOW) else 2)


async def test_a_post_that_is_done_after_it_was_looked_for_in_vain_makes_the_one_job(
    database: str, tmp_path: Path
) -> None:
    async with play(database, tmp_path) as scene:
        sandbox = uuid4()
        scene.requests.meet("create", "jobs", Fault.CUT)
        scene.requests.meet("create", "jobs", lambda name: scene.make_job(sandbox, "echo hi; exit 3"))
        async with scene.control():
            await scene.asked.insert("echo hi; exit 3", id=sandbox)
            row = await scene.asked.cleaned(sandbox)
        assert (row["state"], row["reason"], row["exit_code"], row["attempt"]) == ("failed", "NonZeroExit", 3, 1)
        assert len(scene.requests.of("create", "jobs")) == 2


async def test_a_sleeper_makes_a_job_of_what_is_over_and_it_never_runs(database: str, tmp_path: Path) -> None:
    """It slept past its lease before its POST; another ran the attempt, recorded it, and the cluster removed it."""

    async with play(database, tmp_path) as scene:
        sandbox = await scene.asked.insert("echo hi; exit 3")
        sleeper = await scene.stopped("before:create")
        async with scene.control():
            row = await scene.asked.cleaned(sandbox)
            assert scene.cluster.expire() == 1
            await scene.cluster.until(lambda: not scene.cluster.jobs() and not scene.cluster.pods())
            made = scene.api.requests["create", "jobs"]
            sleeper.send_signal(signal.SIGCONT)
            await scene.cluster.until(lambda: scene.api.requests["create", "jobs"] > made)
            await scene.cluster.until(lambda: bool(scene.cluster.pods()))
            await scene.swept()
            sleeper.send_signal(signal.SIGTERM)
            assert await sleeper.ended() == 0, scene.log()
        assert not scene.cluster.jobs()
        assert sum(scene.cluster.starts.values()) == 1
        assert await scene.asked.row(sandbox) == row
        assert (row["state"], row["reason"], row["exit_code"], row["attempt"]) == ("failed", "NonZeroExit", 3, 1)


async def test_a_sleeper_that_is_alone_when_it_wakes_sweeps_its_own_job(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        sandbox = await scene.asked.insert("exit 3")
        sleeper = await scene.stopped("before:create")
        async with scene.control():
            row = await scene.asked.cleaned(sandbox)
            scene.cluster.expire()
            await scene.cluster.until(lambda: not scene.cluster.jobs() and not scene.cluster.pods())
        sleeper.send_signal(signal.SIGCONT)
        await scene.cluster.until(lambda: bool(scene.cluster.pods()))
        await scene.swept()
        sleeper.send_signal(signal.SIGTERM)
        assert await sleeper.ended() == 0, scene.log()
        assert sum(scene.cluster.starts.values()) == 1
        assert await scene.asked.row(sandbox) == row


@pytest.mark.parametrize(("point", "most"), [("before:release", 1), ("before:record", 1), ("before:requeue", 2)])
async def test_a_sleeper_that_wakes_after_another_ended_its_run_changes_nothing(
    database: str, tmp_path: Path, point: str, most: int
) -> None:
    async with play(database, tmp_path) as scene:
        sandbox = await scene.asked.insert("echo hi; exit 3", max_attempts=most)
        sleeper = await scene.stopped(point)
        async with scene.control():
            row = await scene.asked.cleaned(sandbox)
            told = await scene.asked.rows("select * from sandbox_events order by id")
            attempts = await scene.asked.rows("select * from sandbox_attempts order by attempt")
            scene.cluster.expire()
            await scene.cluster.until(lambda: not scene.cluster.jobs() and not scene.cluster.pods())
            sleeper.send_signal(signal.SIGCONT)
            sleeper.send_signal(signal.SIGTERM)  # it finishes the step under way first
            assert await sleeper.ended() == 0, scene.log()
        assert await scene.asked.row(sandbox) == row
        assert await scene.asked.rows("select * from sandbox_events order by id") == told
        assert await scene.asked.rows("select * from sandbox_attempts order by attempt") == attempts
        assert (row["state"], row["reason"], row["exit_code"], row["attempt"]) == ("failed", "NonZeroExit", 3, most)
        assert len(attempts) == len(scene.cluster.starts) == most


async def test_a_post_that_outlives_its_controller_makes_nothing_that_runs(database: str, tmp_path: Path) -> None:
    """It lies in the network while another runs the attempt to its end, and the cluster removes it."""

    async with play(database, tmp_path, slow_seconds=4.5) as scene:
        scene.requests.meet("create", "jobs", Fault.SLOW)
        sandbox = await scene.asked.insert("exit 3")
        sender = scene.started()
        await scene.cluster.until(lambda: bool(scene.requests.of("create", "jobs")), 20)
        sender.kill()
        await sender.ended()
        async with scene.control():
            row = await scene.asked.cleaned(sandbox)
            scene.cluster.expire()
            await scene.cluster.until(lambda: not scene.cluster.jobs() and not scene.cluster.pods())
            await scene.cluster.until(lambda: bool(scene.cluster.pods()), 10)
            await scene.swept()
        assert (row["state"], row["exit_code"], row["attempt"]) == ("failed", 3, 1)
        assert sum(scene.cluster.starts.values()) == 1


async def test_two_controllers_share_everything_and_start_each_once(database: str, tmp_path: Path) -> None:
    async with play(database, tmp_path) as scene:
        async with scene.control(), scene.control():
            commands = ["exit 0", "exit 3", "echo hi; sleep 0.3", "sleep 60"]
            every = [await scene.asked.insert(command, timeout_seconds=1) for _ in range(10) for command in commands]
            rows = [await scene.asked.cleaned(sandbox) for sandbox in every]
        ended = [(row["state"], row["reason"], row["exit_code"], row["attempt"]) for row in rows]
        assert ended == 10 * [
            ("succeeded", "Completed", 0, 1),
            ("failed", "NonZeroExit", 3, 1),
            ("succeeded", "Completed", 0, 1),
            ("timed_out", "DeadlineExceeded", None, 1),
        ]
        assert len(scene.cluster.starts) == len(every)
        holders = await scene.asked.rows("select distinct detail from sandbox_events where step = 'claimed'")
        assert len(holders) == 2


async def test_a_day_without_a_controller_and_each_run_is_recorded_as_it_was(database: str, tmp_path: Path) -> None:
    """Runs ended meanwhile: some are there with their logs, some without, some pods are past, some Jobs too."""

    async with play(database, tmp_path) as scene:
        async with scene.control():
            there = [await scene.running("echo there; sleep 1.5; exit 4") for _ in range(5)]
            scene.cluster.job_controller.on = False
            unmade = await scene.asked.insert("exit 5")
            await scene.cluster.until(lambda: scene.cluster.job(f"sandbox-{unmade}") is not None)
        scene.cluster.job_controller.on = True  # the pod comes, and nobody binds it
        scene.cluster.resync()
        gated = await scene.pod(unmade)
        queued = await scene.asked.insert("exit 6")
        await scene.cluster.until(
            lambda: all((scene.cluster.pod(pod) or {})["status"]["phase"] == "Failed" for _, pod in there)
        )
        (whole, _), (without_log, dry), (without_pod, past), (without_job, _), (cut, _) = there
        scene.requests.meet("get", "pods/log", lambda name: _log_gone(scene, name, dry), 100)
        scene.cluster.remove(PODS, past)
        scene.cluster.delete(JOBS, f"sandbox-{without_job}", propagationPolicy="Background")
        scene.cluster.delete(JOBS, f"sandbox-{cut}", propagationPolicy="Orphan")
        await scene.cluster.until(lambda: scene.cluster.job(f"sandbox-{cut}") is None)
        assert scene.cluster.pod(gated) is not None
        await pass_time(scene, timedelta(days=1))
        async with scene.control():
            every = (whole, without_log, without_pod, without_job, cut, unmade, queued)
            rows = {sandbox: await scene.asked.cleaned(sandbox) for sandbox in every}
        ended = [(row["state"], row["reason"], row["exit_code"], row["attempt"]) for row in rows.values()]
        assert ended == [
            ("failed", "NonZeroExit", 4, 1),
            ("failed", "NonZeroExit", 4, 1),
            ("lost", "Lost", None, 1),
            ("lost", "Lost", None, 1),
            ("failed", "NonZeroExit", 4, 1),
            ("failed", "StartTimeout", None, 1),
            ("failed", "NonZeroExit", 6, 1),
        ]
        outputs = [await scene.output(sandbox) for sandbox in (whole, without_log, without_pod, cut)]
        assert outputs == ["there\n", None, None, "there\n"]
        assert sum(scene.cluster.starts.values()) == 6


def _log_gone(scene: Scene, name: str, dry: str) -> None:
    if name == dry:
        scene.cluster.remove(PODS, dry)  # between the list that told its end and the request for its log


async def pass_time(scene: Scene, span: timedelta) -> None:
    """Whoever connects to the database from now on finds it that much later."""
    with connect(scene.url) as owner:
        settable_clock(owner)
    then = (datetime.now(UTC) + span).isoformat()
    name = conninfo_to_dict(scene.url)["dbname"]
    await asyncio.to_thread(scene.sql, f"alter database \"{name}\" set sandbox.now = '{then}'")
