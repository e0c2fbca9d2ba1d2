"""What a Docker engine is asked, and what its answers mean."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.backends.docker import container, volumes
from controller.backends.docker.errors import pull_error
from controller.backends.docker.logs import FULL_LOG_BYTES, PART_BYTES, RECORD_BYTES, ContainerLogTail
from controller.backends.guest.evidence import STATE_FILE_WORDS, Evidence
from controller.backends.guest.layout import keeper_text, wrapper_text
from controller.backends.http_json import ResponseError
from controller.backends.labels import docker_filters, labels
from controller.errors import RequestRejectedError, TransientEngineError
from controller.protocol.model import Key, Launch, Outcome, Phase, Reason, State

KEY = Key(UUID("11111111-2222-3333-4444-555555555555"), 2)
INSTALLATION = str(uuid4())
FIRST, LAST = datetime(2026, 1, 2, 3, 4, 5, 600000, UTC), datetime(2026, 1, 2, 3, 5, 6, 700000, UTC)


def body(**asked: Any) -> dict[str, Any]:
    launch = Launch(KEY, "echo $$ 'é'\n", 60, memory_mib=256, disk_mib=64, **asked)
    return container.create_body(launch, "image:tag", [], INSTALLATION)


def test_the_body_isolates() -> None:
    host = body()["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["ReadonlyRootfs"] is True
    assert host["NetworkMode"] == "none"
    assert host["IpcMode"] == "private"
    assert host["Memory"] == host["MemorySwap"] == (256 + 64 + 8 + 64) << 20  # files lie in memory too
    assert host["ShmSize"] == 256 << 20
    assert host["Tmpfs"].keys() == {"/work", "/tmp"}
    assert host["PidsLimit"] == 512
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["AutoRemove"] is False
    assert host["LogConfig"]["Config"].keys() >= {"max-size", "max-file"}
    unwanted = {"Binds", "Devices", "DeviceRequests", "PortBindings", "CapAdd", "Privileged", "PidMode", "VolumesFrom"}
    assert not unwanted & host.keys()
    assert {mount["Type"] for mount in host["Mounts"]} == {"volume"}
    assert not any("Source" in mount for mount in host["Mounts"])  # anonymous: they go with the container


def test_the_body_carries_the_request_as_it_is() -> None:
    made = body(env={"A": "$$ $(X)\n=é", "B": ""}, network="egress")
    assert made["Cmd"] == ["echo $$ 'é'\n"]
    limits = ("60", "64", "256")
    assert made["Entrypoint"] == ["/bin/sh", "-c", wrapper_text(), "sandbox", "/.sandbox/state", *limits, keeper_text()]
    assert made["Env"] == ["HOME=/work", "A=$$ $(X)\n=é", "B="]
    assert made["User"] == "1000:1000"
    assert made["HostConfig"]["NetworkMode"] == "bridge"
    assert made["Labels"] | labels(KEY, INSTALLATION) == made["Labels"]


def test_work_directory_and_temporary_files_each_have_room_for_disk_mib() -> None:
    made = container.create_body(Launch(KEY, "true", 60, disk_mib=96), "image", [], INSTALLATION)["HostConfig"]["Tmpfs"]
    assert all("size=96m" in made[place] for place in ("/work", "/tmp"))


def test_home_may_be_given() -> None:
    assert body(env={"HOME": "/tmp"})["Env"] == ["HOME=/tmp"]


@pytest.mark.parametrize(("millis", "quota"), [(1, 1000), (10, 1000), (500, 50_000), (256_000, 25_600_000)])
def test_cpu_is_a_quota_that_any_kernel_takes(millis: int, quota: int) -> None:
    assert body(cpu_millis=millis)["HostConfig"]["CpuQuota"] == quota


def test_volumes_of_an_image_without_files_are_small_file_systems() -> None:
    declared = container.declared({"/data/": {}, "data": {}, "/work": {}, "/.sandbox/": {}, "/tmp": {}})
    assert declared == ["/data"]
    made = container.create_body(Launch(KEY, "true", 60), "image", declared, INSTALLATION)
    assert made["HostConfig"]["Tmpfs"].keys() == {"/tmp", "/work", "/data"}
    assert all("size=" in options for options in made["HostConfig"]["Tmpfs"].values())
    assert [mount["Target"] for mount in made["HostConfig"]["Mounts"]] == ["/.sandbox"]


def test_volumes_of_an_image_with_files_keep_them_and_take_no_more() -> None:
    made = container.create_body(Launch(KEY, "true", 60), "image", ["/app", "/data"], INSTALLATION, {"/app"})
    assert made["HostConfig"]["Tmpfs"].keys() == {"/tmp", "/work", "/data"}
    state, app = made["HostConfig"]["Mounts"]
    assert (app["Target"], app["Type"], app["ReadOnly"]) == ("/app", "volume", True)
    assert not app["VolumeOptions"].get("NoCopy")
    assert volumes.named([{"Name": app["Source"]}, {"Name": "f" * 64}, {}]) == [app["Source"]]
    for mount in (state, app):  # so that what outlives its container is known as ours
        assert mount["VolumeOptions"]["Labels"] == labels(KEY, INSTALLATION)


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ({"/app": True, "/data": False, "/none": None}, {"/app"}),
        ({"/a": True, "/a/b": True, "/a/c": False}, {"/a", "/a/b"}),
        ({"/a": True, "/a/b": None, "/ab": True}, {"/ab"}),  # no directory to mount the inner one on
        ({"/a": None, "/a/b": True}, {"/a/b"}),
        ({"/dev": True, "/dev/x": True, "/proc/y": True, "/sys": True, "/device": True}, {"/device"}),
    ],
)
def test_which_volumes_of_an_image_keep_its_files(found: dict[str, bool | None], kept: set[str]) -> None:
    assert volumes.kept(found) == kept


def tar_of(*entries: tuple[str, bytes, int]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind, size in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, size
            tar.addfile(entry, io.BytesIO(b"x" * size))
    return made.getvalue()


@pytest.mark.parametrize(
    ("entries", "files"),
    [
        ([("./", tarfile.DIRTYPE, 0)], False),
        ([("./", tarfile.DIRTYPE, 0), ("./a/", tarfile.DIRTYPE, 0), ("./a/.keep", tarfile.REGTYPE, 0)], False),
        ([("./", tarfile.DIRTYPE, 0), ("./a/", tarfile.DIRTYPE, 0), ("./a/x", tarfile.REGTYPE, 9)], True),
        ([("./", tarfile.DIRTYPE, 0), ("./l", tarfile.SYMTYPE, 0)], True),
        ([("./" + "d" * 300 + "/", tarfile.DIRTYPE, 0), ("./" + "f" * 300, tarfile.REGTYPE, 1)], True),
    ],
)
def test_an_archive_tells_whether_there_are_files(entries: list[tuple[str, bytes, int]], files: bool) -> None:
    archive = tar_of(*entries)
    assert volumes.has_files(archive, whole=True) is files
    begun = [volumes.has_files(archive[:end], whole=False) for end in range(0, len(archive), 512)]
    assert set(begun) <= {None, True}
    assert (True in begun) is files


@given(st.binary(max_size=2000))
def test_no_archive_of_a_volume_breaks_the_look(archive: bytes) -> None:
    assert volumes.has_files(archive, whole=False) in (None, True)


@pytest.mark.parametrize("network", ["none", "egress"])
def test_a_sandbox_has_a_name_that_resolves(network: str) -> None:
    made = body(network=network)
    assert made["Hostname"] == KEY.name
    assert len(Key(KEY.sandbox_id, 10**9).name) <= 63
    assert made["HostConfig"]["ExtraHosts"] == ([f"{KEY.name}:127.0.0.1"] if network == "none" else [])


def test_the_wrapper_loses_only_its_comments() -> None:
    lines = wrapper_text().splitlines()
    assert not any(line.startswith("#") or not line for line in lines)
    assert lines[-1].startswith('exit "$2"')
    assert keeper_text().splitlines()[-1] == "sleep 5"


def test_a_container_is_ours_by_labels_and_name() -> None:
    found = labels(KEY, INSTALLATION)
    assert container.key_of(found, f"/{KEY.name}", INSTALLATION) == KEY
    assert container.key_of(found | {"more": "x"}, KEY.name, INSTALLATION) == KEY
    assert container.key_of(found, "/other", INSTALLATION) is None
    assert container.key_of(found, KEY.name, str(uuid4())) is None
    assert container.key_of(found | {"attempt": "02"}, KEY.name, INSTALLATION) is None
    assert container.key_of(found | {"app": "x"}, KEY.name, INSTALLATION) is None
    assert container.key_of(None, KEY.name, INSTALLATION) is None


@given(st.dictionaries(st.sampled_from(["app", "sandboxId", "attempt", "installation"]), st.text()), st.text())
def test_foreign_labels_never_break_a_listing(foreign: dict[str, str], name: str) -> None:
    assert container.key_of(labels(KEY, INSTALLATION) | foreign, name, INSTALLATION) in (None, KEY)


def test_filters_select_ours_alone() -> None:
    assert json.loads(docker_filters(INSTALLATION, type=["container"])) == {
        "label": ["app=ci-fixer-sandbox", f"installation={INSTALLATION}"],
        "type": ["container"],
    }
    assert f"sandboxId={KEY.sandbox_id}" in json.loads(docker_filters(INSTALLATION, KEY))["label"]


def test_the_state_file_is_made_empty_and_read_back() -> None:
    archive = container.empty_state()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        (entry,) = tar.getmembers()
    assert (entry.name, entry.size, entry.uid, entry.gid, entry.mode) == ("state", 0, 1000, 1000, 0o600)
    assert container.state_text(archive) == ""


def test_of_a_huge_state_file_the_beginning_is_read() -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo("state")
        entry.size = 1 << 20
        tar.addfile(entry, io.BytesIO(b"started\nexit 3\n".ljust(entry.size, b"\xff")))
    text = container.state_text(made.getvalue()[: container.ARCHIVE_BYTES])
    assert len(text) == container.STATE_BYTES
    assert Evidence.parse(text).exit_code == 3


@given(st.binary(max_size=2000))
def test_no_archive_breaks_the_reading(archive: bytes) -> None:
    Evidence.parse(container.state_text(archive))


@given(
    st.text()
    | st.lists(st.sampled_from([*STATE_FILE_WORDS, "exit 3", "exit 999", "exit -1", "exit ٣", "x"])).map("\n".join)
)
def test_no_state_file_breaks_the_parsing(text: str) -> None:
    code = Evidence.parse(text).exit_code
    assert code is None or 0 <= code <= 255


def test_of_each_word_the_first_line_counts() -> None:
    found = Evidence.parse("started\nstarted_at 60\nexit 3\nended_at 120\nexit 0\ntimeout\nended_at 7\n exit 9\n")
    assert found == Evidence(
        started=True,
        started_at=datetime.fromtimestamp(60, UTC),
        ended_at=datetime.fromtimestamp(120, UTC),
        exit_code=3,
    )


def inspect(status: str = "exited", code: int = 0, *, oom: bool = False, error: str = "") -> dict[str, Any]:
    return {
        "Id": "f" * 64,
        "Image": "sha256:abc",
        "Config": {"Labels": {"timeoutSeconds": "60", "memoryMib": "256", "diskMib": "64"}},
        "State": {
            "Status": status,
            "ExitCode": code,
            "OOMKilled": oom,
            "Error": error,
            "StartedAt": "2026-01-02T03:04:05.600000012Z",
            "FinishedAt": "2026-01-02T03:05:06.7Z",
        },
    }


def outcome(state: str, **engine: Any) -> Outcome | None:
    run = container.observed_run(KEY, inspect(**engine), state, "node")
    assert run is not None
    assert (run.phase is Phase.ENDED) == (run.outcome is not None)
    return run.outcome


@pytest.mark.parametrize(
    ("state", "engine", "reason", "code"),
    [
        ("started\nexit 0\n", {}, Reason.COMPLETED, 0),
        ("started\nexit 3\n", {"code": 3}, Reason.NON_ZERO_EXIT, 3),
        ("started\nexit 137\n", {"code": 137}, Reason.NON_ZERO_EXIT, 137),
        ("started\nexit 137\n", {"code": 137, "oom": True}, Reason.OOM_KILLED, 137),
        ("started\nexit 137\noom\n", {"code": 137}, Reason.OOM_KILLED, 137),  # the engine missed it
        ("started\n", {"code": 137, "oom": True}, Reason.OOM_KILLED, 137),
        ("started\nexit 3\noom\n", {"code": 3, "oom": True}, Reason.NON_ZERO_EXIT, 3),
        ("started\noom\nexit 137\n", {"code": 137}, Reason.OOM_KILLED, 137),  # the keeper's word
        ("started\ndisk 99\nexit 137\n", {"code": 137}, Reason.EVICTED, 137),
        ("started\ndisk 99\n", {"code": 137}, Reason.EVICTED, 137),
        ("started\nexit 0\ndisk 99\n", {}, Reason.COMPLETED, 0),
        ("started\ntimeout\nexit 143\n", {"code": 143}, Reason.DEADLINE_EXCEEDED, None),
        ("started\ntimeout\n", {"code": 137}, Reason.DEADLINE_EXCEEDED, None),
        ("started\nexit 0\ntimeout\n", {}, Reason.COMPLETED, 0),
        ("started\n", {"code": 137}, Reason.KILLED, 137),
        ("started\n", {"code": 0}, Reason.KILLED, 0),  # without its line no end is a good one
        ("started\nagain\n", {"code": 125}, Reason.KILLED, None),
        ("started\nexit 3\nagain\n", {"code": 125, "oom": True}, Reason.NON_ZERO_EXIT, 3),
        ("exit 5\n", {"code": 5}, Reason.NON_ZERO_EXIT, 5),  # the command wiped the rest
        ("", {"code": 1}, Reason.START_FAILED, None),
    ],
)
def test_outcomes(state: str, engine: dict[str, Any], reason: Reason, code: int | None) -> None:
    found = outcome(state, **engine)
    assert found is not None
    assert (found.reason, found.exit_code) == (reason, code)


def test_an_end_after_lost_memory_says_so() -> None:
    for code in (0, 3):
        found = outcome(f"started\nexit {code}\noom\n")
        assert found is not None
        assert "memory_mib = 256" in (found.message or "")
        assert found.state is (State.SUCCEEDED if code == 0 else State.FAILED)


def test_an_end_for_want_of_disk_says_how_much_and_the_limit() -> None:
    found = outcome("started\ndisk 99\nexit 137\n")
    assert found is not None
    assert found.message == "it was killed: its files held 99 MiB, over disk_mib = 64"


@pytest.mark.parametrize("given", [{}, {"timeoutSeconds": "x", "memoryMib": "-1", "diskMib": "9" * 99}])
def test_labels_that_somebody_changed_break_nothing(given: dict[str, str]) -> None:
    run = container.observed_run(KEY, inspect() | {"Config": {"Labels": given}}, "started\noom\nexit 137\n", "node")
    assert run is not None
    assert run.outcome is not None
    assert run.outcome.reason is Reason.OOM_KILLED


def test_a_container_without_a_state_file_never_started() -> None:
    run = container.observed_run(KEY, inspect(code=125), None, "node")
    assert run is not None
    assert run.phase is Phase.NEVER_STARTED


def test_a_state_file_that_was_wiped_gives_no_second_attempt() -> None:
    found = outcome("", code=125)
    assert found is not None
    assert found.reason is Reason.START_FAILED


@pytest.mark.parametrize("code", [137, 255])
def test_what_was_killed_without_a_word_is_not_taken_for_never_started(code: int) -> None:
    found = outcome("", code=code)
    assert found is not None
    assert found.reason is Reason.KILLED


def test_a_start_that_the_engine_noted_after_the_end_is_no_later_than_it() -> None:
    late = inspect()
    late["State"]["StartedAt"] = "2026-01-02T03:05:06.8Z"
    run = container.observed_run(KEY, late, "started\nexit 0\n", "node")
    assert run is not None
    assert run.started_at == run.ended_at == LAST


def test_times_are_of_the_first_start() -> None:
    first = container.observed_run(KEY, inspect(), "started\nstarted_at 60\nexit 0\nended_at 120\n", "node")
    again = container.observed_run(KEY, inspect(), "started\nstarted_at 60\nexit 0\nended_at 120\nagain\n", "node")
    assert first is not None
    assert again is not None
    assert (first.started_at, first.ended_at) == (FIRST, LAST)
    assert (again.started_at, again.ended_at) == (datetime.fromtimestamp(60, UTC), datetime.fromtimestamp(120, UTC))


def test_phases() -> None:
    for status, phase in (("created", Phase.INERT), ("running", Phase.RUNNING), ("paused", Phase.RUNNING)):
        run = container.observed_run(KEY, inspect(status), None, "node")
        assert run is not None
        assert (run.phase, run.outcome) == (phase, None)
    assert container.observed_run(KEY, inspect("removing"), None, "node") is None


def test_only_what_is_on_its_way_out_without_a_start_can_never_have_run() -> None:
    for status in ("removing", "dead"):
        started = inspect(status)
        assert not container.is_removed_unstarted(started)
        started["State"]["StartedAt"] = "0001-01-01T00:00:00Z"
        assert container.is_removed_unstarted(started)
    unstarted = inspect("created")
    unstarted["State"]["StartedAt"] = "0001-01-01T00:00:00Z"
    assert not container.is_removed_unstarted(unstarted)


def frame(line: bytes) -> bytes:
    return struct.pack(">BxxxL", 1, len(line)) + line


@given(
    st.lists(st.binary(max_size=50).map(lambda line: line + b"\n"), max_size=30),
    st.integers(0, 100),
    st.integers(1, 70),
)
def test_the_tail_of_a_log_cut_anywhere(lines: list[bytes], limit: int, cut: int) -> None:
    raw, whole = b"".join(map(frame, lines)), b"".join(lines)
    tail = ContainerLogTail(limit)
    for start in range(0, len(raw), cut):
        tail.feed(raw[start : start + cut])
    found = tail.output()
    assert found.tail == whole[max(len(whole) - limit, 0) :]
    assert found.truncated == (len(whole) > limit)


def test_the_line_end_that_the_engine_loses_is_put_back() -> None:
    records = [b"x" * PART_BYTES, b"y" * 9, b"short\n", b"x" * PART_BYTES, b"z\n", b"end"]
    tail = ContainerLogTail(1 << 20)
    for record in records:
        tail.feed(frame(record))
    assert tail.output().tail == b"".join([*records[:2], b"\n", *records[2:]])


def test_a_log_that_may_have_dropped_its_beginning_is_truncated() -> None:
    tail = ContainerLogTail(8 << 20)
    raw = frame(b"\n") * 1000
    for _ in range(FULL_LOG_BYTES // (RECORD_BYTES + 1) // 1000 + 1):
        tail.feed(raw)
    assert tail.output().truncated


@pytest.mark.parametrize(
    ("status", "words", "reason"),
    [
        (404, "manifest for x:1 not found: manifest unknown: manifest unknown", Reason.IMAGE_PULL_FAILED),
        (404, "pull access denied for x, repository does not exist or may require 'docker login'", "ImagePullFailed"),
        (500, "Head https://r/v2/x/manifests/1: unauthorized: authentication required", Reason.IMAGE_PULL_FAILED),
        (400, "invalid reference format: repository name must be lowercase", Reason.INVALID_REQUEST),
        (500, "Get https://r/v2/: dial tcp: lookup r on 10.0.0.1:53: no such host", None),
        (500, "Get https://r/v2/: dial tcp 127.0.0.1:5999: connect: connection refused", None),
        (500, "toomanyrequests: You have reached your pull rate limit", None),
        (500, "net/http: TLS handshake timeout", None),
    ],
)
def test_pulls_that_fail_for_good_are_told_from_those_that_may_yet_work(
    status: int, words: str, reason: Reason | None
) -> None:
    error = pull_error("x:1", ResponseError("the Docker engine", status, words))
    assert words in str(error)
    if reason is None:
        assert isinstance(error, TransientEngineError)
    else:
        assert isinstance(error, RequestRejectedError)
        assert error.outcome.reason == reason
