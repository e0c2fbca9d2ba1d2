"""An older version, from the repository's history: its statements, its verbs and its controllers.

Two versions are tested together: this checkout, and COMMIT, which has schema version 2. An upgrade from 2 to this
checkout's schema runs every migration since. COMMIT is the choice because the step after it, to 3, changes the most
under a controller that runs: a table gets another name, requesters lose a right, and claims and retention get
functions of another name. The steps to 4 and 5 only put new objects and names beside those.

- `tests/integration/test_upgrade.py`: rows, sessions, verbs, controllers and run directories of both together.
- `tests/integration/test_migrate_elsewhere.py`: a database of COMMIT in which others live too, or that was restored.
- `tests/e2e/test_stack_upgrade.py`: a stack that COMMIT made.

Of the schema versions between, no controller is run: test_upgrade.py calls the functions that theirs call, through each
migration. A new version to start from is a new COMMIT, with its FORMER_NAMES, the place of its `queue.sql` below, the
number of its migrations ("2 applied") and OLD_MODULES in the tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tests.support.database import Connection

COMMIT = "c9b461a"  # schema version 2, and in a stack a ConfigMap for the settings
ROOT = Path(__file__).parents[2]
FORMER_NAMES = {  # of its statements
    "owned_rows": "standing",
    "requeue": "again",
    "mark_running": "start",
    "mark_cleaned": "clean",
}


class Older:
    """That version's code in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        extract(COMMIT, directory, "controller")
        self.directory = directory
        text = (directory / "controller" / "sql" / "queue.sql").read_text()
        blocks = re.split(r"^-- (\w+) --$", text, flags=re.MULTILINE)
        self._statements = dict(zip(blocks[1::2], blocks[2::2], strict=True))

    def ask(self, connection: Connection, name: str, **params: Any) -> list[dict[str, Any]]:
        """Runs one of its controller's statements, by the name that it has now."""
        return list(connection.execute(self._statements[FORMER_NAMES.get(name, name)].encode(), params).fetchall())

    def verb(self, url: str, *words: str) -> subprocess.CompletedProcess[str]:
        """`python -m controller …` of that version, to its end."""
        return run_verb(self.directory, url, *words)


def extract(commit: str, directory: Path, *paths: str) -> None:
    """Puts these files and directories (or all) of a commit there."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *paths], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"the history with {commit} is not here: {done.stderr.decode().strip()[:200]}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")


def run_verb(directory: Path, url: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m controller …` of the code in that directory, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "controller", *words],
        cwd=directory,
        env=environment(url),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@contextmanager
def controller(directory: Path, url: str, log: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """A controller of the code in that directory; told to stop at the end."""
    env = environment(url) | {f"SANDBOX_{name}": str(value) for name, value in settings.items()}
    with log.open("ab") as told:
        started = subprocess.Popen(
            [sys.executable, "-m", "controller", "run"], cwd=directory, env=env, stdout=told, stderr=told
        )
    try:
        yield started
    finally:
        started.terminate()
        started.wait(timeout=60)


def environment(url: str) -> dict[str, str]:
    """A verb's environment."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("SANDBOX_")}
    return given | {"DATABASE_URL": url, "LOG_FORMAT": "console", "HTTP_PORT": "0"}
