"""A key that is changed while the stack is up works, is refused, or is told with what follows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pulumi
import pytest

from infra.config import Config
from infra.config.changes import Meaning, meaning, remembered
from tests.support.mocked_stack import configure

UP: dict[str, Any] = {"target": "kubernetes", "appImage": "r.example/app:1", "sandboxImage": "r.example/box:1"}


@pytest.fixture
def config() -> Iterator[Config]:
    """Of a stack that is up."""
    configure(UP, "it", ())
    yield Config.read()
    pulumi.runtime.reset_options()


def told(config: Config, **changes: Any) -> Meaning:
    """Of these fields' change; what is an output in a program stands in clear here."""
    after = replace(config, **changes)
    return meaning(after, remembered(config), remembered(after))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"namespace": "other"},
            "namespace changes from ci-fixer-sandbox-it to other: everything that the stack has in",
        ),
        ({"sandbox_namespace": "other"}, "sandboxNamespace changes from ci-fixer-sandbox-it-sandboxes to other: sand"),
        ({"database_password": "new"}, "databasePassword changes only the clients. First run `alter role"),
        ({"database_url": "postgresql://"}, "databaseUrl is set: the stack's own database is deleted with its rows"),
    ],
)
def test_what_a_change_would_do_to_rows_is_told(config: Config, changes: dict[str, Any], words: str) -> None:
    found = told(config, **changes)
    assert found.faults == []
    (warning,) = found.warnings
    assert warning.startswith(f"ci-fixer-sandbox:{words}")


def test_a_renamed_stack_is_refused_before_everything_is_made_anew(config: Config) -> None:
    (fault,) = told(config, stack="mine").faults
    assert "every object is called ci-fixer-sandbox-it, and would be created again as ci-fixer-sandbox-mine" in fault


def test_an_existing_database_that_is_left_keeps_its_rows(config: Config) -> None:
    existing = replace(config, database_url="postgresql://one")  # type: ignore[arg-type]
    (gone,) = told(existing, database_url=None).warnings
    assert "creates an empty database, and the rows stay in the other" in gone
    (other,) = told(existing, database_url="postgresql://two").warnings
    assert "rows that are in the former database stay there" in other
    (moved,) = told(existing, namespace="other").warnings
    assert "rows" not in moved
    assert told(existing, postgres_image="postgres:18.0") == Meaning([], [])  # it is not that image's


@pytest.mark.parametrize(
    ("image", "refused"),
    [("postgres:16.1", True), ("postgres:15.99", False), ("postgres:14.1", False), ("postgres@sha256:12", False)],
)
def test_a_newer_major_version_of_postgres_is_refused(config: Config, image: str, refused: bool) -> None:
    assert bool(told(config, postgres_image=image).faults) == refused


def test_another_target_is_refused(config: Config) -> None:
    (fault,) = told(config, target="docker").faults
    assert fault.startswith("ci-fixer-sandbox:target cannot become docker: stack it is up on kubernetes")


def test_sandboxes_of_a_socket_that_is_given_up_are_named(config: Config) -> None:
    dev = replace(config, target="docker", docker_socket="/run/docker.sock")
    (warning,) = told(dev, docker_socket=None).warnings
    assert warning.startswith("ci-fixer-sandbox:dockerSocket changes: sandboxes that run cannot be followed")


def test_what_changes_nothing_is_not_mentioned(config: Config) -> None:
    assert told(config, max_running=7, replicas=3, quota_cpu="8") == Meaning([], [])
    assert meaning(config, {"target": "kubernetes"}, remembered(config)) == Meaning(
        [], []
    )  # remembered by an older one
