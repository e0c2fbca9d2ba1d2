"""What a dev stack is made of."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import PreflightError
from infra.policy.wire import plain
from tests.support.mocked_stack import ROOT, Deploy, Recorded
from tests.support.provider_answers import DIGEST

CONTAINER = "docker:index/container:Container"


def test_the_app_runs_sandboxes_of_the_built_image_beside_itself(dev: Deploy) -> None:
    app = dev().one(CONTAINER, "app")
    assert f"SANDBOX_IMAGE={DIGEST}" in app["envs"]
    assert "SANDBOX_BACKEND=docker" in app["envs"]
    assert app["volumes"] == [{"containerPath": "/var/run/docker.sock", "hostPath": "/var/run/docker.sock"}]


def test_the_app_has_the_group_of_the_socket_and_no_capability(dev: Deploy) -> None:
    app = dev(dockerSocketGroup=998).one(CONTAINER, "app")
    assert app["groupAdds"] == ["998"]
    assert app["capabilities"] == {"drops": ["ALL"]}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the engine has a socket of its own, which is root's")
def test_the_group_is_the_sockets_own_where_none_is_given(dev: Deploy, tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(path))
        os.chown(path, -1, os.getgid())
        app = dev(dockerSocket=str(path), dockerSocketGroup=None).one(CONTAINER, "app")
    assert app["groupAdds"] == [str(os.getgid())]


def test_without_a_socket_nothing_of_the_host_is_mounted(dev: Deploy) -> None:
    app = dev(dockerSocket="", dockerSocketGroup=None).one(CONTAINER, "app")
    assert app["volumes"] == []
    assert app["groupAdds"] == []
    assert "SANDBOX_BACKEND=process" in app["envs"]


def test_only_the_migration_is_the_owner(dev: Deploy) -> None:
    recorded = dev(databasePassword="a/b")
    (migrating,) = (one for one in recorded.one(CONTAINER, "migration")["envs"] if one.startswith("DATABASE_URL="))
    (running,) = (one for one in recorded.one(CONTAINER, "app")["envs"] if one.startswith("DATABASE_URL="))
    assert migrating == "DATABASE_URL=postgresql://postgres:a%2Fb@database:5432/sandbox"
    assert running.startswith("DATABASE_URL=postgresql://sandbox_controller:generated-controller-password@database")


def test_no_password_is_in_clear(dev: Deploy) -> None:
    recorded = dev(databasePassword="owners")
    seen = json.dumps([[*plain(inputs)] for _, _, inputs in recorded.all()])
    assert "owners" not in seen
    assert "generated-" not in seen
    assert recorded.secret_outputs == {"database_url", "requester_database_url"}


def test_another_database_container_gets_another_migration_and_controller_for_its_volume_may_be_empty(
    dev: Deploy,
) -> None:
    for name in ("migration", "app"):
        assert dev().one(CONTAINER, name)["labels"] == [{"label": "database", "value": "database_id"}]


def test_a_password_that_is_given_is_not_generated(dev: Deploy) -> None:
    kind = "random:index/randomPassword:RandomPassword"
    assert dev(databasePassword="x").names(kind) == ["controller-password", "requester-password"]
    assert dev().names(kind) == ["controller-password", "owner-password", "requester-password"]


def test_prebuilt_images_are_taken_and_nothing_is_built(dev: Deploy) -> None:
    recorded = dev(appImage="r.example/app:1", sandboxImage="r.example/box:1")
    assert recorded.names("docker:index/image:Image") == []
    assert recorded.one(CONTAINER, "app")["image"] == "r.example/app:1"
    assert recorded.output("sandbox_image") == "r.example/box:1"


def test_an_image_is_built_from_a_place_that_is_the_same_in_every_checkout(dev: Deploy) -> None:
    for _, name, inputs in dev().all("docker:index/image:Image"):
        context = f"../.work/images/{name.removesuffix('-image')}"
        assert (inputs["build"]["context"], inputs["build"]["dockerfile"]) == (context, f"{context}/Dockerfile")
        assert (ROOT / "infra" / context / "Dockerfile").is_file()


def test_a_checkout_that_lacks_what_an_image_is_built_from_is_one_clear_error(
    dev: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = r"app image cannot be built: there is no ../images/app/Dockerfile; repair the checkout"
    with pytest.raises(PreflightError, match=words):
        dev()


def test_names_begin_with_project_and_stack_and_ports_are_the_configured_ones(dev: Deploy) -> None:
    recorded = dev(httpPort=3001, databasePort=5433)
    for _, name, inputs in recorded.all(CONTAINER):
        assert inputs["name"] == f"ci-fixer-sandbox-dev-{name}"
    assert recorded.one(CONTAINER, "app")["ports"] == [{"internal": 3000, "external": 3001, "ip": "127.0.0.1"}]
    assert recorded.one(CONTAINER, "database")["ports"] == [{"internal": 5432, "external": 5433, "ip": "127.0.0.1"}]


def test_the_outputs_say_where_everything_is(dev: Deploy) -> None:
    recorded: Recorded = dev(httpPort=3001)
    assert recorded.output("health_url") == "http://127.0.0.1:3001/healthz"
    assert recorded.output("metrics_url") == "http://127.0.0.1:3001/metrics"
    assert recorded.output("database_host") == "127.0.0.1:5432"
    assert recorded.output("app_image") == recorded.output("sandbox_image") == DIGEST
    url = "postgresql://sandbox_requester:generated-requester-password@127.0.0.1:5432/sandbox"
    assert recorded.output("requester_database_url") == url
    line = recorded.output("example_request")
    assert line.startswith('psql "$(pulumi stack output requester_database_url --show-secrets --stack dev)"')
    assert "generated" not in line


def test_a_stack_on_docker_loads_no_kubernetes_provider() -> None:
    program = "import sys, infra.program, infra.stacks.docker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "pulumi_docker" in loaded
    assert "pulumi_kubernetes" not in loaded
