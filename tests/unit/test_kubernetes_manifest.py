"""What is asked of a cluster: the Job of an attempt, promise by promise, and the changes to it."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.backends.guest.layout import keeper_text, wrapper_text
from controller.backends.kubernetes import manifest
from controller.backends.kubernetes.options import JobOptions
from controller.backends.labels import installation_labels, key_of, labels
from controller.protocol.model import KILL_MARGIN, Key, Launch

KEY = Key(UUID("11111111-2222-3333-4444-555555555555"), 2)
INSTALLATION = str(uuid4())
UID = "99999999-8888-7777-6666-555555555555"
START_DEADLINE = 600.0
# What an insert may ask for, as text that Postgres stores.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200)
DOLLARS = st.text("$()AB é🐎\n", max_size=40)
LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def whole_job(options: JobOptions | None = None, **asked: Any) -> dict[str, Any]:
    launch = Launch(**{"key": KEY, "command": "true", "timeout_seconds": 60, **asked})
    return manifest.job_manifest(launch, "image:tag", INSTALLATION, options or JobOptions(), START_DEADLINE)


def pod(options: JobOptions | None = None, **asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = whole_job(options, **asked)["spec"]["template"]["spec"]
    return found


def container(**asked: Any) -> dict[str, Any]:
    (found,) = pod(**asked)["containers"]
    assert isinstance(found, dict)
    return found


def expanded(text: str, variables: dict[str, str]) -> str:
    """What a kubelet makes of a command's word, an argument or a variable's value.

    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """
    raw, made, at = text.encode(), b"", 0
    while at < len(raw):
        close = raw.find(b")", at)
        if raw[at : at + 2] == b"$$":
            made, at = made + b"$", at + 2
        elif raw[at : at + 2] == b"$(" and close > 0:
            name = raw[at + 2 : close].decode("utf-8", "replace")
            made, at = made + variables.get(name, f"$({name})").encode(), close + 1
        else:
            made, at = made + raw[at : at + 1], at + 1
    return made.decode()


def test_the_expansion_is_the_documented_one() -> None:
    known = {"A": "1"}
    for given_text, made in {
        "$(A)": "1",
        "$$(A)": "$(A)",
        "$$$(A)": "$1",
        "$(B)": "$(B)",
        "$A $": "$A $",
        "$(A": "$(A",
        "$$": "$",
    }.items():
        assert expanded(given_text, known) == made


@given(TEXTS | DOLLARS)
def test_a_command_arrives_as_it_was_given(command: str) -> None:
    made = container(command=command)
    known = {one["name"]: one["value"] for one in made["env"]} | {"A": "expanded", "B": "expanded"}
    assert expanded(made["args"][0], known) == command
    assert [expanded(word, known) for word in made["command"]] == [
        *("/bin/sh", "-c", wrapper_text(), "sandbox", "/.sandbox/state", "60", "1024", "", keeper_text())
    ]


@given(st.dictionaries(st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,9}\Z"), TEXTS | DOLLARS, max_size=5))
def test_env_arrives_as_it_was_given(env: dict[str, str]) -> None:
    known: dict[str, str] = {}
    for one in container(env=env)["env"]:
        assert one.keys() == {"name", "value"}
        known[one["name"]] = expanded(one["value"], known)  # a kubelet expands them in their order
    assert known == {"HOME": "/work", **env}


def test_the_timeout_stands_where_it_is_read_again() -> None:
    assert container(timeout_seconds=77)["command"][5] == "77"


def test_the_manifest_is_pure() -> None:
    launch = Launch(KEY, "echo $X", 60, env={"X": "1"})
    options = JobOptions(nodeSelector={"a": "b"}, tolerations=[{"key": "x"}], imagePullSecrets=["s"], queue="q")
    asked = launch, "image", INSTALLATION, options, START_DEADLINE
    before = copy.deepcopy((launch, options))
    one, other = manifest.job_manifest(*asked), manifest.job_manifest(*asked)
    assert one == other
    assert json.loads(json.dumps(one)) == one
    spec = one["spec"]["template"]["spec"]
    spec["nodeSelector"]["c"] = "d"
    spec["tolerations"].append({})
    spec["containers"][0]["env"].append({})
    spec["schedulingGates"].clear()
    one["metadata"]["labels"].clear()
    assert manifest.job_manifest(*asked) == other
    assert (launch, options) == before


def test_one_pod_is_made_once() -> None:
    spec = whole_job()["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (1, 1, 0)
    assert spec["podReplacementPolicy"] == "Failed"
    assert pod()["restartPolicy"] == "Never"


def test_it_is_held_by_our_gate_alone() -> None:
    assert pod()["schedulingGates"] == [{"name": manifest.GATE}]


def test_a_job_outlives_its_end_until_it_is_recorded() -> None:
    assert "ttlSecondsAfterFinished" not in whole_job()["spec"]


@given(st.integers(1, 604_800), st.floats(1, 86_400))
def test_the_kubelets_deadline_is_past_every_other(timeout: int, start_deadline: float) -> None:
    launch = Launch(KEY, "true", timeout)
    spec = manifest.job_manifest(launch, "image", INSTALLATION, JobOptions(), start_deadline)["spec"]
    deadline = spec["template"]["spec"]["activeDeadlineSeconds"]
    assert isinstance(deadline, int)
    assert start_deadline + timeout + KILL_MARGIN < deadline < 2**31
    assert "activeDeadlineSeconds" not in spec  # the Job's own would delete the pod and its log


def test_a_deleted_run_is_not_waited_for_long() -> None:
    assert pod()["terminationGracePeriodSeconds"] == 2


# PodSecurity `restricted`, control by control: https://kubernetes.io/docs/concepts/security/pod-security-standards/
def test_it_runs_as_an_ordinary_user() -> None:
    context = pod()["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == 1000
    assert not {"runAsUser", "runAsNonRoot", "runAsGroup"} & container()["securityContext"].keys()


def test_it_gains_no_privileges() -> None:
    context = container()["securityContext"]
    assert context["privileged"] is False
    assert context["allowPrivilegeEscalation"] is False


def test_it_has_no_capabilities() -> None:
    assert container()["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_its_system_calls_are_filtered() -> None:
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "seccompProfile" not in container()["securityContext"]


@pytest.mark.parametrize("name", ["hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace"])
def test_it_shares_nothing_with_its_host(name: str) -> None:
    assert name not in pod()


def test_it_has_no_ports_and_no_probes() -> None:
    assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle"} & container().keys()
    assert not {"initContainers", "ephemeralContainers", "hostAliases", "dnsConfig"} & pod().keys()


def test_its_volumes_are_its_own_and_bounded() -> None:
    assert pod(disk_mib=96, memory_mib=32)["volumes"] == [
        {"name": "work", "emptyDir": {"sizeLimit": "96Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "96Mi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Mi"}},
        {"name": "state", "emptyDir": {"sizeLimit": "1Mi"}},
    ]
    assert {one["mountPath"] for one in container()["volumeMounts"]} == {"/work", "/tmp", "/dev/shm", "/.sandbox"}


@given(st.integers(1, 1 << 20))
def test_work_and_temporary_files_together_are_bounded(disk: int) -> None:
    limit = quantity(container(disk_mib=disk)["resources"]["limits"]["ephemeral-storage"])
    assert disk << 20 <= limit <= (disk + 65) << 20  # state and log are counted too


def test_its_security_has_no_other_fields() -> None:
    known = {"runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "seccompProfile"}
    assert pod()["securityContext"].keys() == known  # no sysctls, no SELinux or AppArmor profile, no host process
    known = {"allowPrivilegeEscalation", "privileged", "readOnlyRootFilesystem", "capabilities"}
    assert container()["securityContext"].keys() == known  # no procMount


def test_its_root_is_read_only() -> None:
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    assert container()["workingDir"] == "/work"


def test_it_has_no_token_and_hears_of_no_services() -> None:
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["enableServiceLinks"] is False
    assert not {"serviceAccountName", "serviceAccount"} & pod().keys()
    assert not {"envFrom"} & container().keys()


def quantity(text: str) -> Fraction:
    units = {"m": Fraction(1, 1000), "Ki": Fraction(1 << 10), "Mi": Fraction(1 << 20), "Gi": Fraction(1 << 30)}
    number, unit = re.fullmatch(r"([0-9]+)(m|Ki|Mi|Gi)?", text).groups()  # type: ignore[union-attr]
    return int(number) * units.get(unit, Fraction(1))


@given(st.integers(1, 256_000), st.integers(16, 1 << 20), st.integers(1, 1 << 20))
def test_requests_are_half_of_the_limits(cpu: int, memory: int, disk: int) -> None:
    found = container(cpu_millis=cpu, memory_mib=memory, disk_mib=disk)["resources"]
    limits, requests = ({name: quantity(text) for name, text in found[part].items()} for part in ("limits", "requests"))
    assert limits["cpu"] == Fraction(cpu, 1000)
    assert limits["memory"] == memory << 20
    assert limits["ephemeral-storage"] >= disk << 20
    assert requests["cpu"] == Fraction(max(cpu // 2, 1), 1000)
    assert requests["memory"] * 2 == limits["memory"]
    assert requests["ephemeral-storage"] * 2 == limits["ephemeral-storage"]
    assert requests.keys() == limits.keys() == {"cpu", "memory", "ephemeral-storage"}


def test_the_image_is_the_launchs_and_pulled_where_it_is_not_there() -> None:
    assert container()["image"] == "image:tag"
    assert container()["imagePullPolicy"] == "IfNotPresent"


def test_its_end_is_told_by_the_file_that_the_wrapper_writes() -> None:
    made = container()
    assert made["terminationMessagePath"] == made["args"][2]
    assert made["terminationMessagePolicy"] == "File"


def test_home_may_be_given() -> None:
    assert container(env={"HOME": "/tmp"})["env"] == [{"name": "HOME", "value": "/tmp"}]


def test_without_options_nothing_is_asked() -> None:
    assert not {field for field in JobOptions.__dataclass_fields__ if field in pod()}
    assert "kueue.x-k8s.io/queue-name" not in whole_job()["metadata"]["labels"]


def test_options_are_applied() -> None:
    toleration = {"key": "kvm", "operator": "Exists", "effect": "NoSchedule"}
    options = JobOptions("gvisor", {"pool": "sandboxes"}, [toleration], "low", ["registry", "other"], "sandboxes")
    made = pod(options)
    assert made["runtimeClassName"] == "gvisor"
    assert made["nodeSelector"] == {"pool": "sandboxes"}
    assert made["tolerations"] == [toleration]
    assert made["priorityClassName"] == "low"
    assert made["imagePullSecrets"] == [{"name": "registry"}, {"name": "other"}]
    assert whole_job(options)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "sandboxes"
    assert "kueue.x-k8s.io/queue-name" not in whole_job(options)["spec"]["template"]["metadata"]["labels"]


def test_options_weaken_nothing() -> None:
    options = JobOptions("gvisor", {"a": "b"}, [{"operator": "Exists"}], "low", ["registry"], "queue")
    plain, made = pod(), pod(options)
    assert {name: made[name] for name in plain} == plain


@pytest.mark.parametrize("network", ["none", "egress"])
def test_the_network_is_a_label_that_policies_select(network: str) -> None:
    assert whole_job(network=network)["spec"]["template"]["metadata"]["labels"]["network"] == network


def test_job_and_pod_are_known_as_ours() -> None:
    made = whole_job()
    for meta in (made["metadata"], made["spec"]["template"]["metadata"]):
        assert key_of(meta["labels"], INSTALLATION) == KEY
        assert (installation_labels(INSTALLATION) | labels(KEY, INSTALLATION)).items() <= meta["labels"].items()


@given(st.uuids(), st.integers(1, 2**31 - 1))
def test_names_and_labels_are_valid_for_any_attempt(sandbox: UUID, attempt: int) -> None:
    key = Key(sandbox, attempt)
    made = whole_job(key=key)
    name = made["metadata"]["name"]
    assert name == key.name
    assert Key.of_name(name) == key
    assert len(f"{name}-abcde") <= 63  # its pod's, which is a host name too
    assert DNS_LABEL.fullmatch(name)
    for meta in (made["metadata"], made["spec"]["template"]["metadata"]):
        for label, value in meta["labels"].items():
            prefix, _, rest = label.rpartition("/")
            assert LABEL_NAME.fullmatch(rest)
            assert not prefix or (LABEL_PREFIX.fullmatch(prefix) and len(prefix) <= 253)
            assert LABEL_NAME.fullmatch(value)


@pytest.mark.parametrize("qualified", [manifest.GATE, manifest.RECORDED])
def test_our_own_names_are_qualified(qualified: str) -> None:
    prefix, _, name = qualified.partition("/")
    assert LABEL_PREFIX.fullmatch(prefix)
    assert LABEL_NAME.fullmatch(name)


@pytest.mark.parametrize(
    "change", [manifest.ungate(UID), manifest.end_now(UID), manifest.disown(UID), manifest.recorded(UID, 1.9)], ids=str
)
def test_every_change_is_of_one_object_alone(change: dict[str, Any]) -> None:
    assert change["metadata"]["uid"] == UID


def test_a_deletion_is_of_one_object_alone() -> None:
    assert manifest.deletion(UID)["preconditions"] == {"uid": UID}


def test_a_release_takes_our_gate_and_no_other() -> None:
    assert manifest.ungate(UID)["spec"] == {"schedulingGates": [{"$patch": "delete", "name": manifest.GATE}]}


def test_a_recorded_job_is_removed_after_a_while() -> None:
    change = manifest.recorded(UID, 1.9)
    assert change["spec"] == {"ttlSecondsAfterFinished": 60}
    assert change["metadata"]["annotations"] == {manifest.RECORDED: "1"}


def test_a_disowned_pod_is_none_of_its_jobs() -> None:
    meta = manifest.disown(UID)["metadata"]
    assert meta["ownerReferences"] is meta["finalizers"] is None
    assert set(meta["labels"].values()) == {None}
    assert not meta["labels"].keys() & labels(KEY, INSTALLATION).keys()  # it stays ours to remove


def test_the_first_line_is_the_attempts_own() -> None:
    assert manifest.first_line(KEY) != manifest.first_line(replace(KEY, attempt=3))
    assert container()["args"][1] == manifest.first_line(KEY)
