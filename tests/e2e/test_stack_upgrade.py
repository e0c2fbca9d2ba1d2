"""Stacks that earlier versions made, taken over by one `up` of this one while their sandboxes run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.engines import need_docker
from tests.support.older import COMMIT, extract
from tests.support.pulumi import ROOT, Stack, need_pulumi
from tests.support.standing import OnDocker, OnKubernetes, Standing, on_docker, on_kubernetes, remove_images, run

pytestmark = pytest.mark.alone

FILES = "select system_identifier from pg_control_system()"  # the same for as long as the volume is
UNTIL_TOLD = "until [ -e /tmp/go ]; do sleep 0.2; done; echo through"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The project as it was at that commit."""
    need_docker()
    need_pulumi()
    directory = tmp_path / "older"
    extract(COMMIT, directory)
    return directory


@pytest.fixture(params=["dev", "prod"])
def standing(request: pytest.FixtureRequest, older: Path, tmp_path: Path) -> Iterator[Standing]:
    """A stack with a program of then, in which nothing is yet."""
    config = on_docker() if request.param == "dev" else on_kubernetes()
    stack = Stack.make(f"u{uuid4().hex[:8]}", tmp_path, config | {"maxRunning": "2"}, older)
    yield OnDocker(stack) if request.param == "dev" else OnKubernetes(stack)
    stack.destroy()
    remove_images(stack)


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
