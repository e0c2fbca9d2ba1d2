"""Maps an error status of the Kubernetes API to its meaning, and explains Jobs without a pod."""

from __future__ import annotations

import re

from controller.backends.http_json import Json, ResponseError
from controller.errors import RequestRejectedError, SandboxError, TransientEngineError
from controller.protocol.model import Reason

# In a permanent 403; any other may pass: a quota, a right not granted yet, an API server that is starting.
DENIED = re.compile(r"denied the request|denied request|violates PodSecurity")
QUOTA = "exceeded quota"
NO_ADDRESS = "no preferred addresses found"  # the pod's node is gone
NO_LOG = (400, 404)  # no such pod, no such container, its log removed


def creation_error(error: ResponseError, namespace: str) -> SandboxError:
    """The meaning of a refused creation of a Job: the request can never be run, or not now."""
    if error.status in (400, 413, 422) or (error.status == 403 and DENIED.search(error.message)):
        return RequestRejectedError(Reason.INVALID_REQUEST, error.message)
    if error.status == 404:
        return TransientEngineError(f"the namespace {namespace} does not exist, or has no batch/v1: {error.message}")
    return TransientEngineError(str(error))


def is_no_room(error: ResponseError) -> bool:
    """Whether a creation of a Job was refused for a quota, for load, or because it exists: not for good."""
    return error.status in (409, 429) or QUOTA in error.message


def is_no_log(error: ResponseError) -> bool:
    """Whether a failed read of a log means that the log does not exist any more."""
    return error.status in NO_LOG or NO_ADDRESS in error.message


def why_no_pod(job: Json) -> str:
    """Why a Job may have no pod, in a sentence."""
    name = job["metadata"]["name"]
    if job["spec"].get("suspend"):
        return f"its Job {name} is suspended: the queue that holds it has not admitted it yet"
    return (
        f"its Job {name} has no pod yet: a full quota, a limit range or a policy may refuse it; "
        f"`kubectl describe job {name}` says which"
    )
