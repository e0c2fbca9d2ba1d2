"""The container of an attempt: the body of its creation, and its state from an inspection. Pure: sends nothing."""

from __future__ import annotations

import io
import posixpath
import tarfile
from collections.abc import Collection, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from controller.backends import labels
from controller.backends.docker import volumes as docker_volumes
from controller.backends.guest.evidence import Evidence, is_number, killed_outcome, outcome_without_evidence
from controller.backends.guest.layout import STATE_DIR, STATE_FILE, USER, WORK_DIR, entrypoint, environment
from controller.backends.http_json import Json, parse_time
from controller.protocol.model import Key, Launch, ObservedRun, Outcome, Phase

MIB = 1 << 20
STATE_BYTES = 4096  # read of the state file
ARCHIVE_BYTES = 16384  # read of its tar archive, headers included
VOLUME_MIB = 64  # of each volume that an image declares and leaves empty
MEMORY_MARGIN_MIB = 64  # and an eighth of disk_mib: what the kernel needs for many small files
PIDS = 512
CPU_PERIOD = 100_000  # microseconds
LEAST_CPU_QUOTA = 1000  # microseconds a period; the kernel takes no less
LIMITS = {"MemoryLimit": "memory", "CpuCfsQuota": "cpu", "PidsLimit": "the number of processes"}
LOG_FILE_MB, LOG_FILES = 8, 3  # a full log keeps the last 16 to 24 MB

PHASES = {
    "created": Phase.INERT,
    "running": Phase.RUNNING,
    "paused": Phase.RUNNING,
    "restarting": Phase.RUNNING,
    "exited": Phase.ENDED,
}
REMOVED_STATES = ("removing", "dead")  # an engine never starts such a container


def create_body(
    launch: Launch, image: str, volumes: Iterable[str], installation: str, kept: Collection[str] = ()
) -> dict[str, Any]:
    """The body of `POST /containers/create`; `volumes`: where the image declares some, `kept`: those with files."""
    own = labels.labels(launch.key, installation)
    seconds, disk, memory = (str(number) for number in (launch.timeout_seconds, launch.disk_mib, launch.memory_mib))
    # An image's own mode of the directory wins over the one given here, its owner does not.
    own_tmpfs = f"rw,exec,nosuid,nodev,uid={USER},gid={USER}"
    sizes = {path: memory if path == "/dev/shm" else VOLUME_MIB for path in {*volumes} - {*kept}} | {"/tmp": disk}
    most = _memory_bytes(launch)
    quota = max(launch.cpu_millis * CPU_PERIOD // 1000, LEAST_CPU_QUOTA)
    log_options = {"max-size": f"{LOG_FILE_MB}m", "max-file": str(LOG_FILES), "compress": "false"}
    return {
        "Image": image,
        "User": f"{USER}:{USER}",
        "WorkingDir": WORK_DIR,
        "Hostname": launch.key.name,  # known beforehand, so that it can be given an address
        "Env": [f"{name}={value}" for name, value in environment(launch).items()],
        "Entrypoint": entrypoint(launch, keeper_memory_mib=launch.memory_mib),
        "Cmd": [launch.command],
        "Labels": {**own, "timeoutSeconds": seconds, "diskMib": disk, "memoryMib": memory},
        "Healthcheck": {"Test": ["NONE"]},  # the image's would run beside the command
        "StopSignal": "SIGKILL",  # PID 1 ignores every other
        "HostConfig": {
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
            "Tmpfs": {
                **{path: f"{own_tmpfs},size={size}m,mode=1777" for path, size in sizes.items()},
                WORK_DIR: f"{own_tmpfs},size={disk}m,mode=0700",
            },
            "Mounts": [
                {"Type": "volume", "Target": STATE_DIR, "VolumeOptions": {"NoCopy": True, "Labels": own}},
                *(docker_volumes.mount(path, own) for path in sorted(kept)),
            ],
            "CpuPeriod": CPU_PERIOD,  # not NanoCpus: it refuses a limit above what the machine has
            "CpuQuota": quota,
            "ShmSize": launch.memory_mib * MIB,
            "Memory": most,
            "MemorySwap": most,  # no swap
            "PidsLimit": PIDS,
            "OomScoreAdj": 500,  # before the host's own processes
            "NetworkMode": "bridge" if launch.network == "egress" else "none",
            # Its own name resolves: on a bridge the engine sees to it.
            "ExtraHosts": [] if launch.network == "egress" else [f"{launch.key.name}:127.0.0.1"],
            "IpcMode": "private",
            "LogConfig": {"Type": "local", "Config": log_options},  # json-file does not keep bytes that are not UTF-8
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
        },
    }


def _memory_bytes(launch: Launch) -> int:
    """The kernel's limit: files lie in memory too. What processes alone hold is bounded by the keeper."""
    return (launch.memory_mib + launch.disk_mib + launch.disk_mib // 8 + MEMORY_MARGIN_MIB) * MIB


def declared(volumes: Iterable[str] | None) -> list[str]:
    """Where the image declares volumes. They would be unbounded, so they become small tmpfs mounts, or read-only."""
    return docker_volumes.declared(volumes or (), {STATE_DIR, WORK_DIR, "/tmp"})


def key_of(found: Json | None, name: str, installation: str) -> Key | None:
    """The attempt that a container belongs to, or None if it is not ours; its name must agree with its labels."""
    key = labels.key_of(found, installation)
    return key if key is not None and name.removeprefix("/") == key.name else None


def cannot_limit(info: Json) -> str:
    """What the engine that says this of itself cannot limit, empty where it can all that we ask."""
    return ", ".join(what for key, what in LIMITS.items() if not info.get(key))


def empty_state() -> bytes:
    """The tar archive with the empty state file that permits one start."""
    entry = tarfile.TarInfo(posixpath.basename(STATE_FILE))
    entry.uid = entry.gid = USER
    entry.mode = 0o600
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry)
    return archive.getvalue()


def state_text(archive: bytes) -> str:
    """The beginning of the state file in the first bytes of its tar archive."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            entry = tar.next()
            content = tar.extractfile(entry) if entry is not None else None
            return content.read(STATE_BYTES).decode("ascii", "replace") if content else ""
    except (tarfile.TarError, EOFError):
        return ""


def _time(text: str | None) -> datetime | None:
    return parse_time(text, never=1)


def is_removed_unstarted(inspect: Json) -> bool:
    """Whether the container is being removed and never started."""
    return inspect["State"]["Status"] in REMOVED_STATES and _time(inspect["State"].get("StartedAt")) is None


def observed_run(key: Key, inspect: Json, state: str | None, node: str | None) -> ObservedRun | None:
    """The state of a run, from its container's inspection; None if the container is being removed.

    `state`: the state file of an exited container, None if it has none: then it never started.
    """
    engine = inspect["State"]
    phase = PHASES.get(engine["Status"])
    if phase is None:
        return None
    run = ObservedRun(key, inspect["Id"], phase, node=node, image_digest=inspect.get("Image"))
    if phase is Phase.INERT:
        return run
    started_at, ended_at = _time(engine.get("StartedAt")), _time(engine.get("FinishedAt"))
    if phase is Phase.RUNNING:
        return replace(run, started_at=started_at)
    evidence = Evidence.parse(state or "")
    outcome = _outcome(inspect, evidence) if state is not None else None
    if evidence.again:
        started_at, ended_at = evidence.started_at, evidence.ended_at
    if started_at and ended_at:  # the engine notes a start once it hears of it, and that may be after a quick end
        started_at = min(started_at, ended_at)
    phase = Phase.ENDED if outcome is not None else Phase.NEVER_STARTED
    return replace(run, phase=phase, outcome=outcome, started_at=started_at, ended_at=ended_at)


def _outcome(inspect: Json, evidence: Evidence) -> Outcome:
    """The outcome of the container's first start."""
    engine, given = inspect["State"], inspect["Config"]["Labels"]
    outcome = evidence.outcome(
        timeout_seconds=_number(given, "timeoutSeconds"),
        memory_mib=_number(given, "memoryMib"),
        disk_mib=_number(given, "diskMib"),
        oom=bool(engine.get("OOMKilled")) and not evidence.again,
    )
    if outcome is not None:
        return outcome
    if not evidence.started:
        return outcome_without_evidence(engine["ExitCode"], engine.get("Error"))
    return killed_outcome(None if evidence.again else engine["ExitCode"])


def _number(given: Json, name: str) -> int:
    """A number from one of our labels. An image may have overwritten it; 0 then appears in a message only."""
    text = str(given.get(name, ""))
    return int(text) if is_number(text) else 0
