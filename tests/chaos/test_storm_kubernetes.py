"""A cluster shaken in every way at once: every row ends with the true reason, and no command runs twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
import urllib3

from tests.support.cluster import Refusal
from tests.support.engines import make_engine, missing
from tests.support.postgres import Postgres
from tests.support.stage import Stage, stage

pytestmark = pytest.mark.alone

EXPECTED = {
    "exit 0": ("succeeded", 0, "Completed"),
    "exit 3": ("failed", 3, "NonZeroExit"),
    "sleep 2": ("succeeded", 0, "Completed"),
    "sleep 15": ("succeeded", 0, "Completed"),
    "sleep 60": ("timed_out", None, "DeadlineExceeded"),
}
DELETED = {("failed", "Deleted"), ("lost", "Deleted"), ("lost", "Lost")}
FORGOTTEN = ("lost", "Evicted")
WEIGHTS = [10, 5, 5, 4, 1]
ROWS = 160
BATCH = 20
KILL_SECONDS = 3.0
LEASE_SECONDS = 5
LIMIT_SECONDS = {"sleep 60": 5}  # also on a node at its limit, a command leaves its mark within it
STOPPED_SECONDS = 20.0  # of the API server
QUOTA_SECONDS = 15.0


@pytest.fixture
def lab() -> Iterator[str]:
    """The command that brings back what of the cluster was stopped, as it does at the end in any case."""
    found = os.environ.get("LAB", "")
    if not Path(found).is_file():
        missing("kubernetes", "LAB does not name the command that starts the cluster's parts again")
    yield found
    subprocess.run([found, "cluster"], check=True, capture_output=True)


class Shaker:
    """Does to a cluster what befalls clusters; each shake takes its time."""

    def __init__(self, made: Stage, lab: str, chance: random.Random) -> None:
        assert made.namespace is not None
        self._made, self._lab, self._chance, self._namespace = made, lab, chance, made.namespace
        self.deleted: set[str] = set()  # sandboxes whose Job or pod was deleted by hand
        self.before_restart: set[UUID] = set()  # sandboxes under way when the kubelet died

    def shakes(self) -> Iterator[Callable[[], None]]:
        """Each in its turn."""
        yield from (self.delete_by_hand, self.pause_a_controller, self.fill_the_quota, self.delete_by_hand)
        yield from (self.stop_the_api_server, self.restart_the_kubelet, self.delete_by_hand)

    def delete_by_hand(self) -> None:
        """Somebody deletes a few Jobs and pods."""
        for kind in ("jobs", "pods"):
            found = [one["metadata"] for one in self._namespace.objects(kind, "app=ci-fixer-sandbox")]
            for meta in self._chance.sample(found, min(4, len(found))):
                self.deleted.add(meta["labels"]["sandboxId"])
                self._namespace.delete(self._namespace.path(kind, meta["name"]))

    def pause_a_controller(self) -> None:
        """One sleeps past its lease, and goes on as if nothing were."""
        paused = self._made.controllers[0]
        self._made.kill(paused, signal.SIGSTOP)
        time.sleep(LEASE_SECONDS + 1)
        self._made.kill(paused, signal.SIGCONT)

    def fill_the_quota(self) -> None:
        """No Job and no pod has room for a while."""
        hard = {"count/jobs.batch": "0", "pods": "0"}
        path = self._namespace.path("resourcequotas")
        self._namespace.admin.call("POST", path, {"metadata": {"name": "full"}, "spec": {"hard": hard}})
        time.sleep(QUOTA_SECONDS)
        self._namespace.delete(f"{path}/full")

    def stop_the_api_server(self) -> None:
        """Nothing answers for a while."""
        _end("kube-apiserver")
        time.sleep(STOPPED_SECONDS)
        self._bring_back()

    def restart_the_kubelet(self) -> None:
        """The node's agent dies and comes back."""
        under_way = self._made.query("select id from sandboxes where state in ('launching', 'running')")
        self.before_restart |= {row["id"] for row in under_way}
        _end("kubelet")
        self._bring_back()

    def _bring_back(self) -> None:
        subprocess.run([self._lab, "cluster"], check=True, capture_output=True)
        until = time.monotonic() + 60
        while True:
            try:
                self._namespace.objects("pods")
            except (Refusal, urllib3.exceptions.HTTPError) as error:
                if time.monotonic() > until:
                    raise TimeoutError("the API server did not come back") from error
                time.sleep(0.5)
            else:
                return


def _end(name: str) -> None:
    ended = [process for process in psutil.process_iter(["name"]) if process.info["name"] == name[:15]]
    assert ended, f"no process {name} on this machine"
    for process in ended:
        process.kill()
    psutil.wait_procs(ended, timeout=30)


def storm(made: Stage, shaker: Shaker, chance: random.Random) -> dict[UUID, str]:
    """Inserts the rows batch by batch, while a controller dies every few seconds and the cluster is shaken."""
    asked: dict[UUID, str] = {}
    shakes = shaker.shakes()
    two = [made.start(), made.start()]
    while len(asked) < ROWS:
        commands = chance.choices(list(EXPECTED), weights=WEIGHTS, k=min(BATCH, ROWS - len(asked)))
        ids = made.insert([(command, LIMIT_SECONDS.get(command, 120)) for command in commands])
        asked |= dict(zip(ids, commands, strict=True))
        time.sleep(KILL_SECONDS)
        made.kill(two[0])
        two = [two[1], made.start()]
        next(shakes, lambda: None)()
    for shake in shakes:
        shake()
    return asked


def wrong(made: Stage, asked: dict[UUID, str], shaker: Shaker) -> dict[str, object]:
    """Rows whose outcome is not the true one. What was deleted by hand may have ended before, or says so; where the
    controller that looked after it was dead at that moment, nobody saw who deleted it, and it is Lost. A kubelet that
    died before it could tell the API server of an end turns the pod away when it is back, and the row says that how
    it ended is not known."""
    found: dict[str, object] = {}
    for row in made.query("select id, state, exit_code, reason, message, attempts from sandbox_results"):
        state, code, reason = EXPECTED[asked[row["id"]]]
        true = (row["state"], row["exit_code"], row["reason"]) == (state, code, reason)
        by_hand = str(row["id"]) in shaker.deleted and (row["state"], row["reason"]) in DELETED
        forgotten = row["id"] in shaker.before_restart and (row["state"], row["reason"]) == FORGOTTEN
        if not (true or by_hand or forgotten):
            found[str(row["id"])] = (asked[row["id"]], row)
    return found


@pytest.mark.timeout(900)
def test_nothing_is_lost_and_nothing_starts_twice_whatever_the_cluster_meets(tmp_path: Path, lab: str) -> None:
    make_engine("kubernetes", tmp_path)
    chance = random.Random(11)
    postgres = Postgres(tmp_path / "postgres")
    try:
        with stage("kubernetes", tmp_path, postgres.url, LEASE_SECONDS=LEASE_SECONDS) as made:
            shaker = Shaker(made, lab, chance)
            asked = storm(made, shaker, chance)
            made.wait_until_done(400)
            made.wait_until_empty()
            for controller in list(made.controllers):
                made.kill(controller, signal.SIGTERM)
            bad = wrong(made, asked, shaker)
            assert not bad, f"{bad}\n{made.log()[-5000:]}"
            starts = made.starts()
            assert max(starts.values()) == 1
            ran = {str(one) for one in asked} - shaker.deleted
            assert ran <= set(starts), "a command that ended left no mark"
            assert made.leftovers() == []
            made.wait("the cluster to remove what is recorded", lambda: not made.objects(), 180, 2)
    finally:
        postgres.stop()
