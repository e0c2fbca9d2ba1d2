"""Rules on the containers of the dev stack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.policy.wire import objects, strings

CONTAINER = "docker:index/container:Container"
LOOPBACK = ("127.0.0.1", "::1")
SHARED = ("networkMode", "pidMode", "ipcMode", "usernsMode")


def loopback_ports(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container's ports are bound to loopback (our design: dev serves its own machine; Docker passes firewalls)."""
    if kind != CONTAINER:
        return []
    return [
        f"the port {one.get('internal')} needs ip: 127.0.0.1, and has {one.get('ip')}"
        for one in objects(properties, "ports")
        if one.get("ip") not in LOOPBACK
    ]


def unprivileged_containers(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container has no rights on its host beyond the engine's socket (CIS Docker Benchmark 5.4, 5.9, 5.16-5.18)."""
    if kind != CONTAINER:
        return []
    found = ["privileged must be removed"] if properties.get("privileged") else []
    found += [f"{key} may not be the host's" for key in SHARED if properties.get(key) == "host"]
    found += ["devices must be removed"] if objects(properties, "devices") else []
    found += [f"may add no capability {one}" for one in strings(properties, "capabilities", "adds")]
    mounted = [str(one["hostPath"]) for one in objects(properties, "volumes") if one.get("hostPath")]
    mounted += [str(one.get("source")) for one in objects(properties, "mounts") if one.get("type") == "bind"]
    return found + [f"mounts the host's {path}" for path in mounted if not path.endswith(".sock")]


def bounded_containers(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container has a limit of memory (CIS Docker Benchmark 5.11)."""
    return ["needs memory"] if kind == CONTAINER and not properties.get("memory") else []


def checked_containers(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container that must keep running has a health check (our design; CIS Docker Benchmark 5.27)."""
    if kind != CONTAINER or properties.get("mustRun") is False:
        return []
    checked = properties.get("healthcheck") or properties.get("wait")
    return [] if checked else ["needs a healthcheck, or wait: true on its image's own"]
