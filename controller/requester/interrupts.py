"""Ctrl-C, TERM, HUP and QUIT for `submit`: a thread handles them, whatever the main thread is doing."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import closing
from typing import NoReturn
from uuid import UUID

from controller import terminal
from controller.errors import DatabaseUnavailableError, SandboxError
from controller.requester.client import AWAY_SECONDS, POLL_SECONDS, Client

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
CANCEL_SECONDS = 1.0  # for a cancel under way when a second signal comes: many runners send two at once
UNASKED, OVER = "no sandbox was requested", "the sandbox had ended"


class Interrupts:
    """The first signal cancels the sandbox, over a connection of its own; the second one exits.

    If there is nothing to cancel, before `asking` and after `over`, the first signal exits.
    """

    def __init__(self, url: str, sandbox_id: UUID) -> None:
        self.number = 0  # the first signal's
        self._url, self._id = url, sandbox_id
        self._lock = threading.Lock()
        self._nothing_to_cancel: str | None = UNASKED
        self._answered, self._cancelled = threading.Event(), threading.Event()
        self._came, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # what nohup is for
                signal.signal(number, lambda *_: None)
        threading.Thread(target=self._heed, daemon=True).start()

    def asking(self) -> None:
        """Says that from now on there may be a row."""
        with self._lock:  # held for good if a signal came before
            self._nothing_to_cancel = None

    def asked(self) -> None:
        """Says that from now on the row exists, or never will."""
        self._answered.set()

    def over(self) -> None:
        """Says that the sandbox's end is known."""
        with self._lock:
            self._nothing_to_cancel = OVER

    @property
    def cancelled(self) -> bool:
        """Whether a signal came and the cancel was sent."""
        return self._cancelled.is_set()

    def leave(self) -> NoReturn:
        """Exits as the first signal would."""
        os._exit(128 + self.number)

    def _heed(self) -> None:
        number = self._came.recv(1)[0]
        with self._lock:
            self.number = number
            if self._nothing_to_cancel is not None:
                self._leave(number, self._nothing_to_cancel)
        threading.Thread(target=self._cancel, daemon=True).start()
        begin = [""] if sys.stderr.isatty() else []  # the line has the terminal's ^C
        terminal.say(*begin, f"submit: received {signal.Signals(number).name}, cancelling sandbox {self._id}")
        number = self._came.recv(1)[0]
        self._cancelled.wait(CANCEL_SECONDS)
        self._leave(number, look(self._id))

    def _cancel(self) -> None:
        try:
            with closing(self._connected()) as client:
                answered = False
                while not answered:  # else the insert may come after the cancel
                    answered = self._answered.wait(POLL_SECONDS)
                    client.cancel(self._id)
        except SandboxError as error:
            terminal.say(f"submit: sandbox {self._id} could not be cancelled: {error}; {look(self._id)}")
        else:
            self._cancelled.set()
            terminal.say(
                "submit: cancel requested, waiting for the sandbox to end; a second signal (Ctrl-C) exits at once"
            )

    def _connected(self) -> Client:
        give_up = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                return Client(self._url)
            except DatabaseUnavailableError:
                if time.monotonic() > give_up:
                    raise
            time.sleep(POLL_SECONDS)

    def _leave(self, number: int, why: str) -> NoReturn:
        terminal.say(f"submit: ended by {signal.Signals(number).name}: {why}")
        os._exit(128 + number)  # the main thread may be waiting for what never comes


def look(sandbox_id: UUID) -> str:
    """The command that shows more about that sandbox."""
    return f"see: python -m controller explain {sandbox_id}"
