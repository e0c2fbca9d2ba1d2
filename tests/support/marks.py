"""Takes the marks that commands leave over the network, where no directory of theirs outlives them."""

from __future__ import annotations

import socketserver
import threading
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.cluster import Admin


class MarkListener:
    """Listens where pods reach this machine, and writes each line it is sent into the file of that name."""

    def __init__(self, directory: Path) -> None:
        lock = threading.Lock()

        class Take(socketserver.StreamRequestHandler):
            timeout = 30  # seconds: a pod that is gone with its network never ends its connection

            def handle(self) -> None:
                try:
                    name = self.rfile.readline(100).decode("ascii", "replace")
                except OSError:
                    return
                if name.endswith("\n"):
                    with lock, (directory / Path(name.strip()).name).open("a") as file:
                        file.write("x\n")

        class Server(socketserver.ThreadingTCPServer):
            block_on_close = False
            daemon_threads = True

        self.host = urlsplit(str(Admin().configuration.host)).hostname or ""
        self._server = Server((self.host, 0), Take)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
