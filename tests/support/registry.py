"""Registries on loopback, which engines take without TLS: one with a login, and one that accepts and says nothing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from tests.support.ports import free_ports

USER, PASSWORD = "fixer", "secret"
HTPASSWD = f"{USER}:$2b$12$LjDZ4Bc3k7/rOYIDiPN1nuxsgUbYZH5dXOYB5j44RWX5omJkzD8s.\n"  # bcrypt of PASSWORD


@contextmanager
def registry_with_login(directory: Path) -> Iterator[str]:
    """A registry that lets in USER alone; its host and port."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        pytest.skip("no docker-registry to start (Debian's package docker-registry)")
    (directory / "htpasswd").write_text(HTPASSWD)
    host = f"localhost:{free_ports(1)[0]}"
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "blobs")}},
        "http": {"addr": host},
        "auth": {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}},
    }
    (directory / "registry.yml").write_text(json.dumps(config))
    with (directory / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", str(directory / "registry.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not answers(host):
            assert process.poll() is None, (directory / "registry.log").read_text()
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)
        yield host
    finally:
        process.terminate()
        process.wait(10)


def answers(host: str) -> bool:
    """Whether a registry that asks for a login listens there."""
    try:
        urlopen(f"http://{host}/v2/", timeout=2)
    except HTTPError as error:
        return error.code == 401
    except (URLError, OSError):
        return False
    return True


@contextmanager
def silent_registry() -> Iterator[str]:
    """One that accepts connections and says nothing; its host and port."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=512)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
