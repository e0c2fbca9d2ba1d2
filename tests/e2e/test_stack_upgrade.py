"""Stacks that earlier versions made, taken over by one `up` of this one while their sandboxes run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.engines import need_cluster, need_docker
from tests.support.older import extract
from tests.support.ports import free_ports
from tests.support.pulumi import POSTGRES, ROOT, Stack, need_pulumi

REGISTRY = os.environ.get("TEST_REGISTRY", "localhost:5000")  # that the engine pushes to and the cluster pulls from
COMMITS = {"4a87d30": "the first with stacks", "c9b461a": "schema version 2"}
SMALL = "cpu_millis, memory_mib, disk_mib, command"
FILES = "select system_identifier from pg_control_system()"  # the same for as long as the volume is
UNTIL_TOLD = "until [ -e /tmp/go ]; do sleep 0.2; done; echo through"


def run(*words: str) -> str:
    """What a command writes, which succeeds."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


@dataclass
class Standing(ABC):
    """A stack, and what stands behind it."""

    stack: Stack

    @property
    def name(self) -> str:
        """What its objects' names begin with."""
        return f"ci-fixer-sandbox-{self.stack.name}"

    @abstractmethod
    def inside(self) -> list[str]:
        """What runs a command beside the database."""

    @abstractmethod
    def kept(self) -> dict[str, str]:
        """What may not be another after an upgrade: what holds data, and what holds that."""

    @abstractmethod
    def sandbox(self, sandbox: str) -> tuple[str, list[str]]:
        """The engine's own name for it, and what runs a command in it."""

    def ask(self, statement: str, login: str = "sandbox_requester") -> list[str]:
        """The lines of a statement's answer."""
        command = [*self.inside(), "psql", "-U", login, "-d", "sandbox", "-qtA", "-c", statement]
        return run(*command).split("\n")

    def insert(self, command: str) -> str:
        """A small sandbox's id."""
        return self.ask(f"insert into sandboxes ({SMALL}) values (100, 64, 64, '{command}') returning id")[0]

    def row(self, sandbox: str) -> dict[str, Any]:
        """Its result."""
        found: dict[str, Any] = json.loads(
            self.ask(
                "select row_to_json(r) from (select r.*, s.attempt as attempts from sandbox_results r"
                f" join sandboxes s using (id) where id = '{sandbox}') r"
            )[0]
        )
        return found

    def until(self, sandbox: str, state: str, seconds: float = 120) -> dict[str, Any]:
        """Its result once it has that state."""
        deadline = time.monotonic() + seconds
        while (row := self.row(sandbox))["state"] != state:
            assert time.monotonic() < deadline, row
            time.sleep(0.3)
        return row


class OnDocker(Standing):
    def inside(self) -> list[str]:
        return ["docker", "exec", f"{self.name}-database"]

    def kept(self) -> dict[str, str]:
        return {"network": run("docker", "network", "inspect", self.name, "--format", "{{.Id}}")}

    def sandbox(self, sandbox: str) -> tuple[str, list[str]]:
        container = run("docker", "ps", "--quiet", "--no-trunc", "--filter", f"label=sandboxId={sandbox}")
        return container, ["docker", "exec", container]


class OnKubernetes(Standing):
    def inside(self) -> list[str]:
        return ["kubectl", "--namespace", self.name, "exec", f"statefulset/{self.name}-database", "--"]

    def kept(self) -> dict[str, str]:
        uid = ["--output", "jsonpath={.metadata.uid} {.spec.volumeName}"]
        claim = f"persistentvolumeclaim/{self.name}-database"
        return {
            "app namespace": run("kubectl", "get", "namespace", self.name, *uid),
            "sandbox namespace": run("kubectl", "get", "namespace", f"{self.name}-sandboxes", *uid),
            "claim": run("kubectl", "--namespace", self.name, "get", claim, *uid),
        }

    def sandbox(self, sandbox: str) -> tuple[str, list[str]]:
        there = ["kubectl", "--namespace", f"{self.name}-sandboxes"]
        uid = "jsonpath={.items[*].metadata.name} {.items[*].metadata.uid}"
        pod = run(*there, "get", "pods", "--selector", f"sandboxId={sandbox}", "--output", uid)
        return pod, [*there, "exec", pod.split()[0], "--"]


@pytest.fixture(params=COMMITS)
def older(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The project as it was at an earlier commit."""
    need_docker()
    need_pulumi()
    directory = tmp_path / "older"
    extract(request.param, directory)
    return directory


@pytest.fixture(params=["dev", "prod"])
def standing(request: pytest.FixtureRequest, older: Path, tmp_path: Path) -> Iterator[Standing]:
    """A stack with a program of then, in which nothing is yet."""
    config = {"postgresImage": POSTGRES, "maxRunning": "2"}
    if request.param == "dev":
        ports = [str(port) for port in free_ports(2)]
        config |= {"target": "docker", "databasePort": ports[0], "httpPort": ports[1]}
    else:
        need_cluster()
        context = run("kubectl", "config", "current-context")
        config |= {"target": "kubernetes", "registry": REGISTRY, "storageSize": "1Gi", "kubeContext": context}
    stack = Stack.make(f"u{uuid4().hex[:8]}", tmp_path, config, older)
    yield OnDocker(stack) if request.param == "dev" else OnKubernetes(stack)
    stack.destroy()
    listed = run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}")
    for image in listed.split("\n"):
        if image.endswith(f":{stack.name}"):
            run("docker", "rmi", image)


@pytest.mark.timeout(900)
def test_one_up_takes_an_older_stack_over_with_its_rows_and_what_runs(standing: Standing) -> None:
    stack = standing.stack
    stack.up()
    done = standing.insert("echo kept")
    assert standing.until(done, "succeeded")["output"] == "kept\n"
    standing.ask("create table theirs as select generate_series(1, 1000) as n", "postgres")
    running = [standing.insert(UNTIL_TOLD) for _ in range(2)]
    for one in running:
        standing.until(one, "running")
    queued = [standing.insert("echo later") for _ in range(2)]
    kept, files = standing.kept(), standing.ask(FILES, "postgres")
    sandboxes = [standing.sandbox(one) for one in running]

    stack.takes(ROOT)
    stack.up()
    assert standing.kept() == kept
    assert standing.ask(FILES, "postgres") == files
    assert [standing.sandbox(one) for one in running] == sandboxes
    assert [standing.row(one)["state"] for one in queued] == ["queued", "queued"]
    assert standing.row(done)["output"] == "kept\n"
    assert standing.ask("select count(*) from theirs", "postgres") == ["1000"]
    for _, inside in sandboxes:
        run(*inside, "touch", "/tmp/go")
    for one, output in [(one, "through\n") for one in running] + [(one, "later\n") for one in queued]:
        row = standing.until(one, "succeeded")
        assert (row["output"], row["attempts"]) == (output, 1)
    stack.up("--expect-no-changes")
