"""Processes that skip the imports: forks of a server process that has imported the controller once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = ("command_line", "crashing", "memory_controller", "remote_engine")  # what the tests fork
CONTEXT.set_forkserver_preload([f"tests.support.{name}" for name in PRELOADED])
POLL_SECONDS = 0.02


class Forked:
    """A process of its own that runs `function(*words)`, with the methods of subprocess.Popen for its life.

    `function` is importable by its name. `environment` is all that the process has, its output goes to the end of the
    file `log`, and `open_files`, if given, is how many files it may have open.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *words: object,
        environment: Mapping[str, str],
        log: Path,
        open_files: int | None = None,
    ) -> None:
        arguments = (function, words, dict(environment), log, open_files)
        self._process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code once it has ended. Raises TimeoutError after so many seconds."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise TimeoutError(f"process {self.pid} has not ended in {timeout} s")
        return code

    async def ended(self) -> int:
        """Its exit code once it has ended."""
        while (code := self.poll()) is None:
            await asyncio.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Sends it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends it SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(
    function: Callable[..., None], words: tuple[object, ...], environment: dict[str, str], log: Path, files: int | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        for output in (1, 2):
            os.dup2(file.fileno(), output)
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    function(*words)
