"""The table of reasons in docs/operations.md has every reason once, with its states and whether it is retried."""

from __future__ import annotations

from pathlib import Path

from controller.protocol.decide import RETRYABLE
from controller.protocol.model import Reason, State

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def table() -> dict[str, list[str]]:
    """The other cells of each reason's row."""
    section = DOCS.read_text().split("\n## Reasons\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    assert len({cells[0] for cells in rows}) == len(rows)
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def test_the_table_has_every_reason_in_order_and_no_other() -> None:
    assert list(table()) == list(Reason)


def test_every_reason_has_states_that_end_a_sandbox_and_words_for_the_rest() -> None:
    for states, happened, advice, retried in table().values():
        assert all(State(state).terminal for state in states.split(", "))
        assert happened
        assert advice
        assert retried.split(",")[0] in ("yes", "no", "always")


def test_the_reasons_that_are_retried_are_those_of_the_protocol() -> None:
    assert {reason for reason, (*_, retried) in table().items() if retried == "yes"} == RETRYABLE
