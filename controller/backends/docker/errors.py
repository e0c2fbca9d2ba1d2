"""Maps an error status of a Docker engine to its meaning: rejected for good, or worth a retry."""

from __future__ import annotations

import re

from controller.backends.http_json import ResponseError
from controller.backends.pull_errors import is_permanent_pull_error
from controller.errors import RequestRejectedError, SandboxError, TransientEngineError
from controller.protocol.model import Reason

NEVER_STARTS = re.compile(  # messages about faults of the image itself
    r"OCI runtime.*(no such file|not found|exec format error|permission denied|not a directory)", re.DOTALL
)


def creation_error(error: ResponseError) -> SandboxError:
    """The meaning of a refused creation of a container."""
    if error.status == 400:
        return RequestRejectedError(Reason.INVALID_REQUEST, error.message)
    return TransientEngineError(str(error))


def start_error(error: ResponseError) -> SandboxError:
    """The meaning of a refused start of an existing container."""
    if NEVER_STARTS.search(error.message):
        return RequestRejectedError(Reason.START_FAILED, error.message)
    return TransientEngineError(str(error))


def pull_error(image: str, error: ResponseError, advice: str = "") -> SandboxError:
    """The meaning of a failed inspection or pull of an image; `advice` is appended to the engine's message."""
    message = error.message + advice
    if error.status == 400:
        return RequestRejectedError(Reason.INVALID_REQUEST, f"image {image!r}: {message}")
    if error.status in (401, 403, 404) or is_permanent_pull_error(message, image):
        return RequestRejectedError(Reason.IMAGE_PULL_FAILED, f"image {image!r}: {message}")
    return TransientEngineError(f"the image {image} cannot be pulled now: {message}")
