"""What an error status of a Docker engine means: rejected for good, or worth another try. Nowhere else decides that."""

from __future__ import annotations

import re

from controller.backends.http_json import ResponseError
from controller.backends.pull_errors import is_permanent_pull_error
from controller.errors import RequestRejectedError, SandboxError, TransientEngineError
from controller.protocol.model import Reason

NEVER_STARTS = re.compile(  # the engine's words for what is the image's own fault, and stays
    r"OCI runtime.*(no such file|not found|exec format error|permission denied|not a directory)", re.DOTALL
)


def creation_error(error: ResponseError) -> SandboxError:
    """Of a container's creation."""
    if error.status == 400:
        return RequestRejectedError(Reason.INVALID_REQUEST, error.message)
    return TransientEngineError(str(error))


def start_error(error: ResponseError) -> SandboxError:
    """Of the start of a container that is there."""
    if NEVER_STARTS.search(error.message):
        return RequestRejectedError(Reason.START_FAILED, error.message)
    return TransientEngineError(str(error))


def pull_error(image: str, error: ResponseError, advice: str = "") -> SandboxError:
    """Of a look at an image, or of its pull; `advice` is added to the engine's words."""
    message = error.message + advice
    if error.status == 400:
        return RequestRejectedError(Reason.INVALID_REQUEST, f"image {image!r}: {message}")
    if error.status in (401, 403, 404) or is_permanent_pull_error(message, image):
        return RequestRejectedError(Reason.IMAGE_PULL_FAILED, f"image {image!r}: {message}")
    return TransientEngineError(f"the image {image} cannot be had now: {message}")
