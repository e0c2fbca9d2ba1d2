"""What a cluster shows of itself to the context's user, within a time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import urllib3
from kubernetes import client

from infra.errors import PreflightError

SECONDS = 10.0  # for one answer
ALL_SECONDS = 25.0  # for all of them
Object = Mapping[str, Any]


class Hidden(Exception):
    """The context's user may not see it."""


@dataclass(frozen=True)
class Reader:
    """One cluster; `where` names it in errors."""

    api: client.ApiClient
    where: str
    until: float = field(default_factory=lambda: time.monotonic() + ALL_SECONDS)

    def get(self, path: str) -> Object | None:
        """One object, or none. Raises Hidden, and PreflightError where the cluster gives no answer."""
        status, answer = self._call("GET", path)
        if status == 404:
            return None
        return self._good(status, answer)

    def items(self, path: str, labels: Mapping[str, str] | None = None) -> Sequence[Object]:
        """All objects of a kind, those with these labels; none where the kind is not known. Raises as `get` does."""
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items())
        found = self.get(f"{path}?labelSelector={quote(selector)}" if selector else path)
        items: Sequence[Object] = found["items"] if found else []
        return items

    def create(self, path: str, body: Object) -> Object:
        """What the server answers to a review. Raises as `get` does."""
        return self._good(*self._call("POST", path, body))

    def delete(self, path: str) -> None:
        """Removes one object with what it owns, if it is there. Raises as `get` does."""
        status, answer = self._call("DELETE", path, {"propagationPolicy": "Background"})
        if status != 404:
            self._good(status, answer)

    def _good(self, status: int, answer: str) -> Object:
        if status in (401, 403):
            raise Hidden
        if status >= 300:
            raise PreflightError(f"{self.where} answers with {status}: {' '.join(answer.split())[:300]}")
        found: Object = json.loads(answer)
        return found

    def _call(self, method: str, path: str, body: Object | None = None) -> tuple[int, str]:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        sent = self.api.param_serialize(method, path, header_params=headers, body=body, auth_settings=["BearerToken"])
        left = self.until - time.monotonic()
        if left <= 0:
            raise PreflightError(f"{self.where} did not answer all questions in {ALL_SECONDS:.0f} s: try again")
        try:
            response = self.api.call_api(*sent, _request_timeout=min(SECONDS, left))
            return int(response.status), response.read().decode("utf-8", "replace")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise PreflightError(
                f"{self.where} does not answer: {error}; start it, or name another kubeContext"
            ) from error
