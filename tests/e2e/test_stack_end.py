"""The end of a stack in which sandboxes run: nothing of it is left, and none of them gets out on the way."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.cluster import Admin
from tests.support.engines import need_docker
from tests.support.pulumi import Stack, need_pulumi
from tests.support.standing import OnDocker, OnKubernetes, on_docker, on_kubernetes, remove_images, run

pytestmark = pytest.mark.alone

Ended = Callable[..., Stack]
ROWS = 5
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
KINDS = (
    "deployments,statefulsets,jobs,pods,networkpolicies,roles,rolebindings,resourcequotas,limitranges,"
    "persistentvolumeclaims,services,endpoints,poddisruptionbudgets"
)


class Doorstep:
    """Listens where a sandbox would find the API server's machine, and counts who comes."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.first = threading.Event()

        class Note(socketserver.BaseRequestHandler):
            def handle(handler) -> None:
                self.came.append(str(handler.client_address))
                self.first.set()

        self.host = str(Admin().configuration.host).partition("://")[2].partition(":")[0]
        self._server = socketserver.ThreadingTCPServer((self.host, 0), Note)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def ended(tmp_path: Path) -> Iterator[Ended]:
    """Makes a stack that is gone afterwards, whatever happens."""
    need_docker()
    need_pulumi()
    made: list[Stack] = []

    def make(config: dict[str, str]) -> Stack:
        made.append(Stack.make(f"e{uuid4().hex[:8]}", tmp_path, config))
        return made[0]

    yield make
    for stack in made:
        stack.destroy()
        remove_images(stack)


@pytest.fixture
def doorstep() -> Iterator[Doorstep]:
    """Where nobody may come."""
    made = Doorstep()
    yield made
    made.close()


@pytest.mark.timeout(600)
def test_nothing_of_a_dev_stack_is_left_where_sandboxes_ran(ended: Ended) -> None:
    stack = ended(on_docker())
    stack.up()
    standing = OnDocker(stack)
    running = [standing.insert("sleep 600") for _ in range(ROWS)]
    for one in running:
        standing.until(one, "running")
    installation = standing.ask("select id from sandbox_installation", "postgres")[0]
    stack.destroy()
    for mine in (f"label=installation={installation}", f"name={standing.name}"):
        assert run("docker", "ps", "--all", "--quiet", "--filter", mine) == ""
        assert run("docker", "volume", "ls", "--quiet", "--filter", mine) == ""
    assert run("docker", "network", "ls", "--quiet", "--filter", f"name={standing.name}") == ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("given", [False, True], ids=["own namespaces", "given namespaces"])
def test_nothing_of_a_prod_stack_is_left_where_sandboxes_ran_and_none_got_out(
    ended: Ended, doorstep: Doorstep, given: bool
) -> None:
    config = on_kubernetes() | {"replicas": "1"}
    spaces = [f"end-{uuid4().hex[:8]}{part}" for part in ("", "-boxes")] if given else []
    for space in spaces:
        run("kubectl", "create", "namespace", space)
        run("kubectl", "label", "namespace", space, RESTRICTED)
    if given:
        config |= {"createNamespaces": "false", "namespace": spaces[0], "sandboxNamespace": spaces[1]}
    try:
        stack = ended(config)
        stack.up()
        standing = OnKubernetes(stack, *spaces)
        knock = f'timeout 1 bash -c "</dev/tcp/{doorstep.host}/{doorstep.port}"'
        run("sh", "-c", knock)
        assert doorstep.first.wait(10)  # so it would be seen
        knocking = f"sleep 5; while :; do {knock}; sleep 0.1; done"  # by then the plugin has heard of the pod
        running = [standing.insert(knocking, ("none", "egress")[each % 2]) for each in range(ROWS)]
        for one in running:
            standing.until(one, "running")
        stack.destroy()
        assert len(doorstep.came) == 1
        for space in spaces:
            assert run("kubectl", "--namespace", space, "get", KINDS, "--output", "name") == ""
        left = run("kubectl", "get", "namespaces,persistentvolumes", "--output", "name")
        assert stack.name not in left + run("kubectl", "get", "persistentvolumeclaims", "--all-namespaces")
    finally:
        for space in spaces:
            run("kubectl", "delete", "namespace", space, "--wait=false")
