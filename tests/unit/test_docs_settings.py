"""Every setting stands in docs/operations.md, with its bounds and its default, and nothing else does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from annotated_types import Ge, Le
from pydantic_core import PydanticUndefined

from controller.settings import PASSWORDS, Settings

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def table() -> dict[str, list[str]]:
    """The settings' table: each variable's other cells."""
    section = DOCS.read_text().split("## Settings\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def test_the_table_has_every_setting_and_no_other() -> None:
    assert list(table()) == [name.upper() for name in Settings.model_fields] + list(PASSWORDS)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_is_documented_as_it_is(name: str) -> None:
    takes, default, why = table()[name.upper()]
    field = Settings.model_fields[name]
    value = field.get_default(call_default_factory=True, validated_data={})
    assert default == ("required" if value is PydanticUndefined else f"`{value}`")
    bounds = [rule.ge if isinstance(rule, Ge) else rule.le for rule in field.metadata if isinstance(rule, Ge | Le)]
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.]*", takes)]
    assert numbers == bounds
    assert why.endswith(".")
    assert field.description
