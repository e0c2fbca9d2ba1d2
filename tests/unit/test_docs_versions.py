"""The schema versions that docs/operations.md names are those of the migrations."""

from __future__ import annotations

from pathlib import Path

from controller.db import sql

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"


def test_the_document_names_the_newest_schema_version_and_the_oldest_that_may_run_beside_it() -> None:
    newest = sql.migrations()[-1]
    section = DOCS.read_text().split("\n## Upgrading\n")[1].split("\n## ")[0]
    assert f"This code has {newest.version};" in section
    assert f"(it is {newest.min_code_version} today)" in section
