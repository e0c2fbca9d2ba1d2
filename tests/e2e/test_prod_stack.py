"""The stack on a cluster, for real: from nothing to an outcome, through a rollout, and back to nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.support.engines import missing, need_cluster, need_docker
from tests.support.pulumi import POSTGRES, Stack, need_pulumi

pytestmark = pytest.mark.alone

REGISTRY = os.environ.get("TEST_REGISTRY", "localhost:5000")  # that the engine pushes to and the cluster pulls from
INSERT_SECONDS = 0.2
CONTROLLERS = "app.kubernetes.io/component=controller"


def kubectl(*words: str) -> str:
    """What kubectl writes."""
    done = subprocess.run(["kubectl", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack that is not there yet, and is gone afterwards."""
    need_docker()
    need_cluster()
    need_pulumi()
    if shutil.which("kubectl") is None:
        missing("kubernetes", "the command kubectl is not there")
    config = {
        "target": "kubernetes",
        "registry": REGISTRY,
        "postgresImage": POSTGRES,
        "storageSize": "1Gi",
        "quotaPods": "20",  # so that sandboxes leave a small node room for the controllers of a rollout
        "kubeContext": kubectl("config", "current-context").strip(),
    }
    made = Stack.make(f"t{uuid4().hex[:8]}", tmp_path, config)
    yield made
    made.destroy()


class Database:
    """The stack's database as its requester has it, in the pod."""

    def __init__(self, stack: Stack) -> None:
        name = f"ci-fixer-sandbox-{stack.name}"
        self.command = ["kubectl", "--namespace", name, "exec", "--stdin", f"statefulset/{name}-database", "--"]
        self.command += ["psql", "--username", "sandbox_requester", "--dbname", "sandbox", "-tA"]

    def ask(self, statement: str) -> list[str]:
        """The lines of the answer."""
        done = subprocess.run([*self.command, "-c", statement], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")

    def row(self, sandbox: str) -> dict[str, Any]:
        """The sandbox's result."""
        found: dict[str, Any] = json.loads(
            self.ask(f"select row_to_json(r) from sandbox_results r where id = '{sandbox}'")[0]
        )
        return found

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Waits for a condition."""
        deadline = time.monotonic() + 240
        while not true():
            assert time.monotonic() < deadline, what
            time.sleep(0.3)

    def insert_until(self, stop: threading.Event) -> int:
        """Inserts five rows a second; how many."""
        session = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert session.stdin is not None
        count, columns = 0, "command, tenant, cpu_millis, memory_mib, disk_mib"  # small: many at once on a small node
        while not stop.wait(INSERT_SECONDS):
            session.stdin.write(f"insert into sandboxes ({columns}) values ('echo in', 'rollout', 50, 32, 16);\n")
            session.stdin.flush()
            count += 1
        session.stdin.close()
        assert session.wait() == 0
        return count


@pytest.mark.timeout(900)
def test_a_prod_stack_gives_sandboxes_loses_none_in_a_rollout_and_leaves_nothing(stack: Stack) -> None:
    stack.up()
    outputs, database = stack.outputs(), Database(stack)
    asked_for = stack.request()
    database.until(lambda: database.row(asked_for)["state"] == "succeeded", f"{asked_for} to succeed")
    assert database.row(asked_for)["output"] == "hello\n"
    passwords = [str(urlsplit(outputs[name]).password) for name in ("database_url", "requester_database_url")]
    assert stack.shows(passwords) == []
    mine = "app.kubernetes.io/name=ci-fixer-sandbox"
    logs = kubectl("--namespace", outputs["namespace"], "logs", "--selector", mine, "--tail=-1", "--prefix")
    assert logs
    assert [password for password in passwords if password in logs] == []
    stack.up("--expect-no-changes")

    namespace, app = outputs["namespace"], f"deployment/ci-fixer-sandbox-{stack.name}"
    limit = '{..env[?(@.name=="SANDBOX_MAX_RUNNING")].value}'
    stop = threading.Event()
    inserted: list[int] = []
    inserting = threading.Thread(target=lambda: inserted.append(database.insert_until(stop)))
    inserting.start()
    try:
        stack.set("maxRunning", "90")
        stack.up()
    finally:
        stop.set()
        inserting.join()
    assert kubectl("--namespace", namespace, "get", app, "--output", f"jsonpath={limit}") == "90"
    ended = "select count(*) from sandboxes where tenant = 'rollout' and state = 'succeeded' and attempt = 1"
    assert inserted[0] > 5
    database.until(lambda: database.ask(ended)[0] == str(inserted[0]), f"{inserted} rows to succeed at once each")

    asleep = database.ask("insert into sandboxes (command) values ('sleep 600') returning id")[0]
    database.until(lambda: database.row(asleep)["state"] == "running", "the sleeper to run")
    drained = kubectl("--namespace", namespace, "exec", app, "--", "python", "-m", "controller", "drain")
    assert "nothing is left" in drained
    assert database.row(asleep)["state"] == "cancelled"

    stack.destroy()
    left = kubectl("get", "namespaces,persistentvolumes", "--output", "name") + kubectl("get", "pvc", "-A")
    assert stack.name not in left


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("kubeContext", "nowhere", "ci-fixer-sandbox:kubeContext to a context of it"),
        ("registry", "", "registry is missing"),
        ("quotaMemory", "12Gb", "quotaMemory takes a Kubernetes quantity, such as 500m, 20 or 64Gi; it is '12Gb'"),
    ],
)
def test_a_bad_configuration_is_one_clear_error_before_anything_is_made(
    stack: Stack, key: str, value: str, words: str
) -> None:
    stack.refuses(key, value, words)


@pytest.mark.timeout(900)
def test_what_does_not_get_ready_is_told_in_the_clusters_and_the_controllers_words(stack: Stack) -> None:
    namespace = f"ci-fixer-sandbox-{stack.name}"
    stack.set("appImage", f"{REGISTRY}/nowhere:1")
    written = stack.run("up", "--yes", "--skip-preview", fails=True)
    assert f"cannot pull image {REGISTRY}/nowhere:1" in written
    assert "not found" in written
    assert "Traceback" not in written

    stack.run("config", "rm", "appImage")
    stack.up()
    before = kubectl("--namespace", namespace, "get", "pods", "--selector", CONTROLLERS, "--output", "name")
    stack.set("apiServerCidrs", "[]")  # and nobody writes that policy
    stack.set("maxRunning", "90")
    written = stack.run("up", "--yes", "--skip-preview", fails=True)
    assert f"waiting for Deployment {namespace}" in written
    assert "the Kubernetes API at https://" in written
    left = kubectl("--namespace", namespace, "get", "pods", "--selector", CONTROLLERS, "--output", "name")
    assert set(before.split()) <= set(left.split())  # the old ones go on
    stack.run("config", "rm", "apiServerCidrs")
    stack.up()
