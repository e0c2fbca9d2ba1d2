"""The rule that no password stands in a resource or an output in clear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.policy.pods import containers_of, pod_of
from infra.policy.wire import objects, plain

PASSWORD_KEY = re.compile(r"(password|passwd|passphrase|secret|token|api_?key|private_?key|database_?url)s?$", re.I)
NO_PASSWORD = re.compile(r"^(true|false|automount.*)?$", re.I)  # switches whose names end alike
URL_WITH_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@:]*:[^\s/@]+@", re.I)
ASSIGNMENT = re.compile(r"^([A-Z][A-Z0-9_]*)=(.+)$", re.S)  # how a Docker container's variables are written


def plain_secrets(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """What holds a password is wrapped as a Pulumi secret, in inputs and outputs (our design: no password in clear)."""
    found = {path for path, value in plain(properties) if isinstance(value, str) and _tells(path, value)}
    found |= _variables(kind, properties)
    if kind == "kubernetes:core/v1:Secret":
        found |= {path for path, _ in plain(properties) if path.partition(".")[0] in ("data", "stringData")}
    return [f"{path} must be a secret" for path in sorted(found)]


def _tells(path: str, value: str) -> bool:
    name = path.rpartition(".")[2].partition("[")[0]
    if PASSWORD_KEY.search(name) and not NO_PASSWORD.match(value):
        return True
    assigned = ASSIGNMENT.match(value)
    return bool(URL_WITH_PASSWORD.search(value) or (assigned and PASSWORD_KEY.search(assigned[1])))


def _variables(kind: str, properties: Mapping[str, Any]) -> set[str]:
    """Variables of Kubernetes containers that are named like a password and have their value in clear."""
    return {
        f"{who}: {one['name']}"
        for who, container in containers_of(pod_of(kind, properties) or {})
        for one in objects(container, "env")
        if isinstance(one.get("value"), str) and one["value"] and PASSWORD_KEY.search(str(one.get("name")))
    }
