"""`make mutants`: remove each guard of the protocol in a copy of the project, and check that its test fails.

`python -m tests.mutants WORD...` tries only the guards whose promise contains one of the words.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.guards import GUARDS, Guard

ROOT = Path(__file__).parents[2]
NOT_COPIED = (".git", ".venv", ".work", "*_cache", ".hypothesis", "__pycache__", "build")
PASSED, FAILED = 0, 1  # pytest's exit codes; every other one means that a test could not run


def main(words: Sequence[str]) -> int:
    """Try the guards, print one line for each, and return 1 if the test of any does not fail without it."""
    guards = [guard for guard in GUARDS if not words or any(word in guard.promise for word in words)]
    if not guards:
        print(f"no guard's promise contains {' or '.join(words)}", file=sys.stderr)
        return 1
    unguarded = 0
    with tempfile.TemporaryDirectory(prefix="sandbox-mutants-") as directory:
        project = Path(directory) / "project"
        shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(*NOT_COPIED))
        code, report = pytest(project, sorted({guard.test for guard in guards}))
        if code != PASSED or " skipped" in report:
            print(f"{report}\nthe tests do not pass with every guard in place: make them pass first", file=sys.stderr)
            return 1
        for guard in guards:
            why = why_unguarded(project, guard)
            unguarded += why is not None
            verdict = "red    " if why is None else "NOT RED"
            print(f"{verdict}  {guard.promise}\n         {why or guard.test}", flush=True)
    print(f"{len(guards) - unguarded} of {len(guards)} guards have a test that fails without them")
    return 1 if unguarded else 0


def why_unguarded(project: Path, guard: Guard) -> str | None:
    """Return why nothing notices that the guard is removed; None if its test fails."""
    path = project / guard.path
    source = path.read_text()
    if source.count(guard.text) != 1:
        return f"its text occurs {source.count(guard.text)} times in {guard.path}: update tests/mutants/guards.py"
    path.write_text(source.replace(guard.text, guard.replacement))
    try:
        code, report = pytest(project, [guard.test])
    finally:
        path.write_text(source)
    return None if code == FAILED and " error" not in report else f"pytest {guard.test} exits with {code}: {report}"


def pytest(project: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run these tests of the copy; return the exit code and the last line of the report."""
    words = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines() or done.stderr.splitlines()
    return done.returncode, lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
