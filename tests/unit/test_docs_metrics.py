"""Every metric of /metrics is in docs/operations.md, and nothing else is called one there."""

from __future__ import annotations

import re
from pathlib import Path

from controller.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_document_names_every_metric_and_no_other() -> None:
    (line,) = (line for line in DOCS.read_text().splitlines() if line.startswith("- `/metrics`"))
    families = Metrics().registry.collect()
    served = [f"{each.name}_total" if each.type == "counter" else each.name for each in families]
    assert sorted(re.findall(r"`(sandbox_\w+)(?:\{[\w,]+\})?`", line)) == sorted(served)
