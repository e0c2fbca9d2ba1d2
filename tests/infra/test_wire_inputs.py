"""The inputs that both stacks send for every resource stay: to the engine, another value is a change to make.

If a change is wanted, record them again and review the difference:
`RECORD=1 .venv/bin/pytest tests/infra/test_wire_inputs.py`. Image digests are left out; passwords are the mocks'.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from infra.policy.wire import SIGNATURE, is_list, is_secret
from tests.support.mocked_stack import ROOT, Deploy
from tests.support.provider_answers import DIGEST

DIRECTORY = ROOT / "tests" / "infra"
STACKS: list[tuple[str, str, dict[str, Any]]] = [
    ("dev", "dev", {}),
    ("dev_every_key", "dev", {"databasePassword": "owners", "dockerSocketGroup": 998, "protectDatabase": True}),
    ("dev_without_engine", "dev", {"dockerSocket": "", "dockerSocketGroup": None}),
    ("prod", "prod", {}),
    (
        "prod_every_key",
        "prod",
        {
            "apiServerCidrs": ["10.9.0.1/32"],
            "createNamespaces": False,
            "databasePassword": "owners",
            "egressCidrs": ["0.0.0.0/0", "10.1.0.0/16", "dns"],
            "imagePullSecret": "login",
            "jobOptions": {"runtimeClassName": "gvisor", "queue": "sandboxes"},
            "monitoringNamespace": "metrics",
            "protectDatabase": True,
            "pullRegistry": "registry:5000/team",
            "registryPassword": "pushes",
            "registryUsername": "me",
            "requesterNamespaces": ["my-app"],
            "storageClass": "fast",
        },
    ),
    (
        "prod_existing_database",
        "prod",
        {"databaseUrl": "postgresql://me:pw@db.example:6432/it?sslmode=require", "databaseCidrs": ["10.0.0.0/8"]},
    ),
]


def shown(value: Any) -> Any:
    """The value as it is recorded: what is secret is marked."""
    if isinstance(value, dict):
        if SIGNATURE in value:
            inner = shown(value.get("value"))
            return {"[secret]": inner} if is_secret(value) else inner
        return {key: shown(inner) for key, inner in value.items()}
    return [shown(inner) for inner in value] if is_list(value) else value


@pytest.mark.parametrize(("file", "stack", "config"), STACKS, ids=[file for file, _, _ in STACKS])
def test_an_up_of_an_older_stack_sends_the_same_inputs(
    file: str, stack: str, config: dict[str, Any], dev: Deploy, prod: Deploy
) -> None:
    recorded = {"dev": dev, "prod": prod}[stack](**config)
    inputs = {f"{token} {name}": shown(found) for token, name, found in recorded.all()}
    assert len(inputs) == len(recorded.all()) > 10
    text = json.dumps(inputs, indent=1, sort_keys=True, ensure_ascii=False).replace(DIGEST, "[digest]") + "\n"
    known = DIRECTORY / f"inputs_{file}.json"
    if os.environ.get("RECORD"):
        known.write_text(text)
    assert json.loads(text) == json.loads(known.read_text()), "see the head of this file"
