"""No engine and no cluster is in reach of the tests of this directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.no_engine import no_engine


@pytest.fixture(autouse=True)
def nothing_in_reach() -> Iterator[None]:
    """A test that asks an engine or a cluster by mistake fails, whatever this machine has."""
    with no_engine():
        yield
