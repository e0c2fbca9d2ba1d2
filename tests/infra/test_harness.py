"""The harness itself: a test of it that looks at nothing is no green one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mocked_stack import ROOT


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("dev()", 1, "this test deploys and looks at nothing of it"),
        ("assert dev().names('Network') == ['network']", 0, "1 passed"),
    ],
)
def test_a_test_that_looks_at_nothing_of_what_it_deploys_fails(
    tmp_path: Path, body: str, code: int, words: str
) -> None:
    (tmp_path / "test_it.py").write_text(f"def test_it(dev):\n    {body}\n")
    line = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "pyproject.toml",
        "-p",
        "tests.infra.conftest",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*line, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert words in done.stdout
