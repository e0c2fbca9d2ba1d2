"""A stack that is up, and what stands behind it: its database, its sandboxes, its objects on the engine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from tests.support.engines import need_cluster
from tests.support.ports import free_ports
from tests.support.pulumi import POSTGRES, Stack

REGISTRY = os.environ.get("TEST_REGISTRY", "localhost:5000")  # that the engine pushes to and the cluster pulls from
SMALL = "cpu_millis, memory_mib, disk_mib, network, command"


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

    def insert(self, command: str, network: str = "none") -> str:
        """A small sandbox's id; the command is without quotes of SQL's."""
        values = f"100, 64, 64, '{network}', '{command}'"
        return self.ask(f"insert into sandboxes ({SMALL}) values ({values}) returning id")[0]

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


@dataclass
class OnKubernetes(Standing):
    namespace: str = ""
    sandbox_namespace: str = ""

    def __post_init__(self) -> None:
        self.namespace = self.namespace or self.name
        self.sandbox_namespace = self.sandbox_namespace or f"{self.name}-sandboxes"

    def inside(self) -> list[str]:
        return ["kubectl", "--namespace", self.namespace, "exec", f"statefulset/{self.name}-database", "--"]

    def kept(self) -> dict[str, str]:
        uid = ["--output", "jsonpath={.metadata.uid} {.spec.volumeName}"]
        claim = f"persistentvolumeclaim/{self.name}-database"
        return {
            "app namespace": run("kubectl", "get", "namespace", self.namespace, *uid),
            "sandbox namespace": run("kubectl", "get", "namespace", self.sandbox_namespace, *uid),
            "claim": run("kubectl", "--namespace", self.namespace, "get", claim, *uid),
        }

    def sandbox(self, sandbox: str) -> tuple[str, list[str]]:
        there = ["kubectl", "--namespace", self.sandbox_namespace]
        uid = "jsonpath={.items[*].metadata.name} {.items[*].metadata.uid}"
        pod = run(*there, "get", "pods", "--selector", f"sandboxId={sandbox}", "--output", uid)
        return pod, [*there, "exec", pod.split()[0], "--"]


def on_docker() -> dict[str, str]:
    """The configuration of a stack on this machine's engine."""
    ports = [str(port) for port in free_ports(2)]
    return {"target": "docker", "postgresImage": POSTGRES, "databasePort": ports[0], "httpPort": ports[1]}


def on_kubernetes() -> dict[str, str]:
    """The configuration of a stack on the cluster."""
    need_cluster()
    context = run("kubectl", "config", "current-context")
    config = {"target": "kubernetes", "postgresImage": POSTGRES, "registry": REGISTRY}
    return config | {"storageSize": "1Gi", "kubeContext": context}


def remove_images(stack: Stack) -> None:
    """Removes what was built for this stack from the engine."""
    for image in run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split("\n"):
        if image.endswith(f":{stack.name}"):
            run("docker", "rmi", image)
