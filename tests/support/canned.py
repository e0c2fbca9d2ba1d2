"""An HTTP server that answers from a table: for what a real engine or cluster seldom says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answers = dict[str, Any]  # by method and path, `GET /version`: JSON, raw bytes, or a status


class Canned:
    """`answers` may change at any time; `asked` holds each request's method and path with its query."""

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.url = ""

    def answer(self, line: str) -> tuple[int, bytes]:
        """What is sent back."""
        self.asked.append(line)
        found = self.answers.get(urlsplit(line).path, 404)
        if isinstance(found, int):
            return found, json.dumps({"message": f"status {found}"}).encode()
        return 200, found if isinstance(found, bytes) else json.dumps(found).encode()


@contextmanager
def canned(answers: Answers) -> Iterator[Canned]:
    """One that listens on loopback."""
    served = Canned(answers)

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            status, body = served.answer(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = handle_one

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
