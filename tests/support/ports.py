"""Ports for those who cannot take any free one themselves."""

from __future__ import annotations

import random
import socket

BELOW_EPHEMERAL = range(10_000, 32_768)  # no connection is given one of these between the look and the use


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on, none twice."""
    found: list[int] = []
    for port in random.sample(BELOW_EPHEMERAL, len(BELOW_EPHEMERAL)):
        if len(found) == count:
            break
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
    return found
