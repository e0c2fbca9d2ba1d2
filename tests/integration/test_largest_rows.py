"""The largest rows that may be asked for: what they cost the controller and the cluster stays within their bounds."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from controller.backends.kubernetes.manifest import job_manifest
from controller.backends.kubernetes.options import JobOptions
from controller.protocol.model import Key, Launch
from controller.settings import Settings
from tests.bench.scale import peak
from tests.support.database import connect, insert, one
from tests.support.fake_kubernetes import registry
from tests.support.fake_kubernetes.scene import scene
from tests.support.fake_kubernetes.store import JOBS, PODS, Kind, Object
from tests.support.stage import ROOT

pytestmark = pytest.mark.alone

COMMAND_BYTES, ENV_BYTES, VARIABLES = 65_536, 65_536, 256
FILLERS = {"letters": "x", "dollars": "$", "quotes": '"', "control characters": "\x01", "accents": "é", "emoji": "🐎"}


def command(filler: str, does: str = "sleep 600;") -> str:
    return does + filler * ((COMMAND_BYTES - len(does)) // len(filler.encode()))


def env(filler: str) -> dict[str, str]:
    """As many variables as there may be, and the longest that fit: the names half, the values the other half."""
    each = ENV_BYTES // VARIABLES - len('"": "", ')
    stored = len(json.dumps(filler, ensure_ascii=False).encode()) - 2  # as Postgres writes it
    return {f"V{number:03}".ljust(each // 2, "N"): filler * (each // 2 // stored) for number in range(VARIABLES)}


@pytest.mark.parametrize("filler", FILLERS)
def test_a_row_is_at_most_a_megabyte_to_the_cluster(filler: str, database: str) -> None:
    line, variables = command(FILLERS[filler]), env(FILLERS[filler])
    with connect(database, "sandbox_requester") as requester:
        made = insert(requester, command=line, env=json.dumps(variables))
        sizes = one(
            requester,
            "select octet_length(command) as command, octet_length(env::text) as env,"
            " (select count(*) from jsonb_object_keys(env)) as variables from sandboxes where id = %s",
            [made],
        )
    assert sizes["command"] > COMMAND_BYTES - 4
    assert sizes["env"] > ENV_BYTES * 0.9
    assert sizes["variables"] == VARIABLES
    launch = Launch(Key(uuid4(), 1), line, 600, env=variables)
    body = job_manifest(launch, "image", str(uuid4()), JobOptions(), 600)
    body["metadata"]["managedFields"] = managed_fields(body["spec"]["template"]["spec"])
    assert len(json.dumps(body)) < 1_000_000


def managed_fields(pod: Object) -> list[Object]:
    """What an API server adds to every object: the path of each field, and so the name of each variable."""
    names = [variable["name"] for variable in pod["containers"][0].get("env", ())]
    fields: Object = {f'k:{{"name":"{name}"}}': {".": {}, "f:name": {}, "f:value": {}} for name in names}
    return [
        {"manager": "m", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:env": fields}}}
    ]


@pytest.mark.timeout(180)
def test_the_controller_stays_under_its_memory_limit_with_the_largest_rows(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many of them as may run at once by default, on a cluster that answers with all that a real one does."""
    limit = re.search(
        r'resources\("\w+", "\w+", "\w+", "(\d+)Mi"\)', (ROOT / "infra/components/kubernetes/app.py").read_text()
    )
    assert limit
    count = Settings.model_fields["sandbox_max_running"].default
    fill_in = registry._fill_in

    def filled(kind: Kind, made: Object) -> None:
        fill_in(kind, made)
        pods = {JOBS: lambda: made["spec"]["template"]["spec"], PODS: lambda: made["spec"]}
        if kind in pods:
            made["metadata"]["managedFields"] = managed_fields(pods[kind]())

    monkeypatch.setattr(registry, "_fill_in", filled)

    async def go() -> int:
        async with asyncio.timeout(150), scene(database, tmp_path, {}, {}) as made:
            with connect(database) as owner:
                for _ in range(count):
                    insert(owner, command=command("$"), env=json.dumps(env("$")), memory_mib=64, max_attempts=1)
            environment = os.environ | {
                **{"DATABASE_URL": database, "HTTP_PORT": "0", "SANDBOX_BACKEND": "kubernetes"},
                **{"SANDBOX_NAMESPACE": made.cluster.namespace, "KUBECONFIG": str(made.kubeconfig)},
            }
            with (tmp_path / "log").open("ab") as log:
                running = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "controller", "run", cwd=ROOT, env=environment, stdout=log, stderr=log
                )
            try:
                await _until(made, "select count(*) = %s as done from sandboxes where state = 'running'", count)
                comparisons = len(made.requests.of("list", "pods"))
                while len(made.requests.of("list", "pods")) < comparisons + 2:
                    assert running.returncode is None, (tmp_path / "log").read_text()[-3000:]
                    await asyncio.sleep(0.2)
                await made.asked.rows("update sandboxes set cancel_requested_at = now()")
                await _until(made, "select count(*) = 0 as done from sandboxes where finished_at is null")
                return peak(running.pid)
            finally:
                running.kill()
                await running.wait()

    async def _until(made: Any, query: str, *values: object) -> None:
        while not (await made.asked.rows(query, *values))[0]["done"]:
            await asyncio.sleep(0.2)

    used = asyncio.run(go()) / (1 << 20)
    print(f"peak: {used:.0f} MiB")
    assert used < int(limit[1]) * 0.8
