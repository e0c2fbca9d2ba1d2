"""Ctrl-C, TERM, HUP and QUIT for `submit`: heeded by a thread of their own, whatever the main thread is doing."""

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
CANCEL_SECONDS = 1.0  # that a second signal leaves to a cancel under way: many a runner sends two in one moment
UNASKED, OVER = "nothing was asked for", "it had ended"


class Interrupts:
    """The first signal has the sandbox cancelled, over a connection of its own; the second leaves.

    Where there is nothing to cancel, before `asking` and after `over`, the first one leaves.
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
        """From now on there may be a row."""
        with self._lock:  # which is held for good where a signal came before
            self._nothing_to_cancel = None

    def asked(self) -> None:
        """From now on there is a row, or there will be none."""
        self._answered.set()

    def over(self) -> None:
        """Its end is known."""
        with self._lock:
            self._nothing_to_cancel = OVER

    @property
    def cancelled(self) -> bool:
        """Whether a signal came, and the sandbox's end was asked for."""
        return self._cancelled.is_set()

    def leave(self) -> NoReturn:
        """Ends as by the first signal."""
        os._exit(128 + self.number)

    def _heed(self) -> None:
        number = self._came.recv(1)[0]
        with self._lock:
            self.number = number
            if self._nothing_to_cancel is not None:
                self._leave(number, self._nothing_to_cancel)
        threading.Thread(target=self._cancel, daemon=True).start()
        begin = [""] if sys.stderr.isatty() else []  # the terminal's ^C stands there
        terminal.say(*begin, f"submit: {signal.Signals(number).name} came, cancelling {self._id}")
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
            terminal.say(f"submit: it could not be cancelled: {error}; {look(self._id)}")
        else:
            self._cancelled.set()
            terminal.say("submit: asked to cancel it, waiting for its end; another signal (Ctrl-C) leaves at once")

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
        terminal.say(f"submit: left by {signal.Signals(number).name}: {why}")
        os._exit(128 + number)  # the main thread may be waiting for what never comes


def look(sandbox_id: UUID) -> str:
    """Where to read on about it."""
    return f"see: python -m controller explain {sandbox_id}"
