"""What a stack's end tells while it waits, and when it takes a workload for stopped."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from threading import Event
from typing import Any

import grpc
import pytest

from infra.ending.drain import DrainProgress, Patience
from infra.ending.kubernetes_objects import is_scaled_down


@pytest.mark.parametrize(
    ("generation", "status", "stopped"),
    [
        (2, {"observedGeneration": 2}, True),
        (2, {"observedGeneration": 2, "replicas": 0}, True),
        (2, {"observedGeneration": 2, "replicas": 1}, False),
        (2, {"observedGeneration": 1}, False),
        (1, {}, False),
    ],
)
def test_a_workload_is_stopped_once_its_controller_has_seen_its_size(
    generation: int, status: dict[str, int], stopped: bool
) -> None:
    assert is_scaled_down({"metadata": {"generation": generation}, "status": status}) is stopped
    assert is_scaled_down(None)


def test_a_drain_that_reports_nothing_is_reported_with_the_line_that_it_wrote_last() -> None:
    told: SimpleQueue[str] = SimpleQueue()
    with DrainProgress("pod it-drain", 360, Patience(report=0.01), told.put) as progress:
        assert told.get(timeout=30).endswith(" s, silent for at most 360 s): it has written nothing yet")
        progress.heard('{"message": "the database does not answer"}')
        while "nothing yet" in (words := told.get(timeout=30)):
            pass
    assert words.startswith("waiting for pod it-drain to end (")
    assert words.endswith("it last wrote: the database does not answer")


def test_of_what_a_silent_drain_wrote_only_reports_and_events_are_repeated() -> None:
    told: SimpleQueue[str] = SimpleQueue()
    with DrainProgress("pod it-drain", 360, Patience(report=0.01), told.put) as progress:
        progress.heard('{"message": "the database does not answer", "error": "no route to host"}')
        progress.heard("DATABASE_URL=postgresql://me:hidden@h/it")
        progress.heard('{"password": "hidden"}')
        while (words := told.get(timeout=30)).endswith("nothing yet"):
            pass
        words += told.get(timeout=30)
    assert words.count("it last wrote: the database does not answer: no route to host") == 2
    assert "hidden" not in words


def test_reports_for_an_engine_that_is_gone_end_without_a_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    told, raised = Event(), list[Any]()

    def gone(words: str) -> None:
        told.set()
        raise grpc.RpcError

    monkeypatch.setattr(threading, "excepthook", raised.append)
    with DrainProgress("pod it-drain", 360, Patience(report=0.01), gone):
        assert told.wait(30)
    assert raised == []


def test_a_drain_that_reports_by_itself_is_not_reported_beside_it() -> None:
    told: SimpleQueue[str] = SimpleQueue()
    with DrainProgress("pod it-drain", 360, Patience(report=60), told.put) as progress:
        progress.heard("drain: waiting, 2 sandboxes are left on this engine")
    assert told.empty()
