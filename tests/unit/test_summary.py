"""The end of a run of the tests says what was proved, and why the rest was not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.support.summary import engine_of, lines, tier_of


def report(nodeid: str, longrepr: object = None) -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, longrepr=longrepr)


def test_counts_are_by_tier_and_engine_and_reasons_are_told_once_each() -> None:
    why = ("file", 1, "Skipped: backend docker: no engine answers\nand more")
    docker = [report(f"tests/conformance/test_backend.py::test_{number}[docker]", why) for number in range(2)]
    stats = {
        "passed": [report("tests/unit/test_text.py::test_a"), report("tests/chaos/test_storm.py::test_b[memory-500]")],
        "skipped": docker,
        "error": [report("tests/chaos/test_storm.py::test_b[process-500]")],
        "": [report("tests/unit/test_text.py::test_a")],  # its set-up
    }
    assert [line.split() for line in lines(stats)] == [
        ["tier", "passed", "skipped", "failed"],
        ["chaos", "1", "0", "1"],
        ["conformance", "0", "2", "0"],
        ["unit", "1", "0", "0"],
        ["engine", "passed", "skipped", "failed"],
        ["docker", "0", "2", "0"],
        ["memory", "1", "0", "0"],
        ["process", "0", "0", "1"],
        ["skipped", "2:", "backend", "docker:", "no", "engine", "answers"],
    ]
    assert not list(lines({}))


@pytest.mark.parametrize(
    ("nodeid", "engine"),
    [
        ("tests/integration/test_docker_backend.py::test_a", "docker"),
        ("tests/integration/test_stack_ending_kubernetes.py::test_a", "kubernetes"),
        ("tests/integration/test_hostile_commands.py::test_a[process]", "process"),
        ("tests/integration/test_fake_cluster_faults.py::test_a", "fake cluster"),
        ("tests/conformance/test_kubernetes_api.py::test_a[fake]", "fake cluster"),
        ("tests/integration/test_claim.py::test_a_process_that_is_gone", None),
        ("tests/unit/test_docker_spec.py::test_a[docker]", None),
    ],
)
def test_an_engine_is_named_by_a_parameter_or_the_file(nodeid: str, engine: str | None) -> None:
    assert engine_of(nodeid) == engine


def test_a_tier_is_the_directory() -> None:
    assert tier_of("tests/unit/test_text.py::test_a[x/y]") == "unit"
    assert tier_of("tests/test_text.py::test_a") == "tests"
