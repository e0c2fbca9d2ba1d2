"""The Job of an attempt, and the patches of Jobs and pods. Pure: sends nothing."""

from __future__ import annotations

from typing import Any

from controller.backends.guest.layout import STATE_DIR, USER, WORK_DIR, entrypoint, environment
from controller.backends.kubernetes.options import JobOptions
from controller.backends.labels import LABEL_APP, labels
from controller.protocol.model import KILL_MARGIN, Key, Launch

GATE = "ci-fixer-sandbox/bound"  # on every pod until its run is bound: no scheduler takes it before that
RECORDED = "ci-fixer-sandbox/recorded-at"  # on a Job whose outcome is in the table: seconds since 1970
CONTAINER = "sandbox"
STATE_MIB = 1
MESSAGE_FILE = "/dev/termination-log"  # the kubelet creates one per container, and reports its content at the end
LOG_MIB = 64  # the size of a log under the kubelet's default rotation; it counts as ephemeral storage
DEADLINE_MARGIN = 60  # seconds past start deadline, timeout and kill after which the kubelet ends the pod
END_NOW = 1  # activeDeadlineSeconds of a pod that a controller ended
GRACE_SECONDS = 2  # PID 1 ignores TERM; long enough to read the log of a run that somebody else deletes
TTL_SECONDS = 60  # for which a recorded Job can still be inspected
OWNERSHIP = ("controller-uid", "batch.kubernetes.io/controller-uid")  # labels by which a Job selects its pods


def job_manifest(
    launch: Launch, image: str, installation: str, options: JobOptions, start_deadline: float
) -> dict[str, Any]:
    """The Job of an attempt. Its one pod has our scheduling gate; limits are the row's, requests half of them."""
    common = _labels(launch.key, installation)
    queue = {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": launch.key.name, "labels": {**common, **queue}},
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"labels": {**common, "network": launch.network}},
                "spec": _pod(launch, image, options, start_deadline),
            },
        },
    }


def _labels(key: Key, installation: str) -> dict[str, str]:
    return labels(key, installation) | {
        "app.kubernetes.io/name": "sandbox",
        "app.kubernetes.io/instance": key.name,
        "app.kubernetes.io/part-of": LABEL_APP,
        "app.kubernetes.io/managed-by": LABEL_APP,
    }


def _pod(launch: Launch, image: str, options: JobOptions, start_deadline: float) -> dict[str, Any]:
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "schedulingGates": [{"name": GATE}],
        "activeDeadlineSeconds": int(start_deadline + launch.timeout_seconds + KILL_MARGIN) + DEADLINE_MARGIN,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(launch, image)],
        "volumes": [
            {"name": "work", "emptyDir": {"sizeLimit": f"{launch.disk_mib}Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": f"{launch.disk_mib}Mi"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{launch.memory_mib}Mi"}},
            {"name": "state", "emptyDir": {"sizeLimit": f"{STATE_MIB}Mi"}},
        ],
    }
    asked = {
        "runtimeClassName": options.runtimeClassName,
        "nodeSelector": dict(options.nodeSelector),
        "tolerations": list(options.tolerations),
        "priorityClassName": options.priorityClassName,
        "imagePullSecrets": [{"name": name} for name in options.imagePullSecrets],
    }
    return pod | {name: value for name, value in asked.items() if value}


def _container(launch: Launch, image: str) -> dict[str, Any]:
    disk = launch.disk_mib + STATE_MIB + LOG_MIB  # work and temporary files together
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": [_literal(word) for word in entrypoint(launch, keeper_memory_mib=None)],
        "args": [_literal(launch.command), _literal(first_line(launch.key)), MESSAGE_FILE],
        "env": [{"name": name, "value": _literal(value)} for name, value in environment(launch).items()],
        "workingDir": WORK_DIR,
        "terminationMessagePath": MESSAGE_FILE,
        "terminationMessagePolicy": "File",
        "resources": {
            "limits": {
                "cpu": f"{launch.cpu_millis}m",
                "memory": f"{launch.memory_mib}Mi",
                "ephemeral-storage": f"{disk}Mi",
            },
            "requests": {
                "cpu": f"{max(launch.cpu_millis // 2, 1)}m",
                "memory": f"{launch.memory_mib * 512}Ki",
                "ephemeral-storage": f"{disk * 512}Ki",
            },
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "work", "mountPath": WORK_DIR},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "state", "mountPath": STATE_DIR},
        ],
    }


def first_line(key: Key) -> str:
    """The line that the wrapper writes before any output: a log that begins with it is complete."""
    return f"# {key.name}"


def _literal(text: str) -> str:
    """The text, escaped against the kubelet's expansion of $(VAR) and $$.

    https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#Container (command, args, env)
    """
    return text.replace("$", "$$")


def ungate(run_uid: str) -> dict[str, Any]:
    """The patch that removes our gate from that very pod: the API answers with a conflict if the uid differs."""
    return {"metadata": {"uid": run_uid}, "spec": {"schedulingGates": [{"$patch": "delete", "name": GATE}]}}


def end_now(run_uid: str) -> dict[str, Any]:
    """The patch by which the kubelet ends that pod at once, but keeps it and its log."""
    return {"metadata": {"uid": run_uid}, "spec": {"activeDeadlineSeconds": END_NOW}}


def disown(run_uid: str) -> dict[str, Any]:
    """The patch that detaches that pod from its Job, which would count its deletion as a failure and end its other pod.

    It removes the finalizer too: the Job's controller removes that only from pods of its own.
    """
    no_labels = dict.fromkeys(OWNERSHIP)
    return {"metadata": {"uid": run_uid, "ownerReferences": None, "finalizers": None, "labels": no_labels}}


def recorded(job_uid: str, now: float) -> dict[str, Any]:
    """The patch by which the cluster removes a Job, whose outcome is in the table, some time after its end."""
    return {
        "metadata": {"uid": job_uid, "annotations": {RECORDED: str(int(now))}},
        "spec": {"ttlSecondsAfterFinished": TTL_SECONDS},
    }


def deletion(uid: str, as_of: str | None = None) -> dict[str, Any]:
    """The body of a DELETE of that very object, after its dependents; with `as_of`, only at that resource version."""
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": {"uid": uid} | ({} if as_of is None else {"resourceVersion": as_of}),
        "propagationPolicy": "Foreground",
    }
