"""`python -m controller …`, as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys

from controller.__main__ import main


def run_here(*words: str) -> None:
    """Runs one verb in this process, which ends with its exit code."""
    sys.exit(main(words))


def command_line(url: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs one verb on that database to its end; it must never show a stack trace."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("SANDBOX_", "PG"))}
    given |= {"DATABASE_URL": url, "LOG_FORMAT": "console", "PYTHONUTF8": "1"}
    given |= {"SANDBOX_BACKEND": "process", "HTTP_PORT": "0"} | environment
    done = subprocess.run(
        [sys.executable, "-m", "controller", *words], env=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done
