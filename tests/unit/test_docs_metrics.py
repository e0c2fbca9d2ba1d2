"""Every metric of /metrics is in the table of docs/operations.md with its type, and nothing else is."""

from __future__ import annotations

import re
from pathlib import Path

from controller.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_document_names_every_metric_with_its_type_and_no_other() -> None:
    section = DOCS.read_text().split("\n| metric | type |")[1].split("\n\n")[0]
    documented = re.findall(r"^\| `(sandbox_\w+)(?:\{[\w,]+\})?` \| (\w+) \| \S", section, flags=re.MULTILINE)
    families = Metrics().registry.collect()
    served = [(f"{each.name}_total" if each.type == "counter" else each.name, each.type) for each in families]
    assert sorted(documented) == sorted(served)
