"""A stack that cannot come up on a real Docker engine is refused before anything is made."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from uuid import uuid4

import pytest

from infra.preflight import preflight
from tests.support.engines import need_docker
from tests.support.mocked_stack import Configured, configured


@pytest.fixture
def config() -> Iterator[Configured]:
    """The configuration that the program reads, with these keys."""
    with configured() as read:
        yield read


def test_what_another_state_has_under_the_stacks_names_is_named_with_what_to_do(config: Configured) -> None:
    need_docker()
    stack = f"taken-{uuid4().hex[:6]}"
    found = replace(config(target="docker", dockerSocketGroup=0), stack=stack)
    assert preflight(found).taken == ()
    volume = f"ci-fixer-sandbox-{stack}-database"
    subprocess.run(["docker", "volume", "create", volume], check=True, capture_output=True)
    try:
        (words,) = preflight(found).taken
    finally:
        subprocess.run(["docker", "volume", "rm", volume], check=True, capture_output=True)
    assert words.startswith(f"the engine has volume {volume}, and this stack's state does not know it")
    assert words.endswith(f"docker volume rm {volume}")
