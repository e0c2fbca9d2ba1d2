"""A client of a cluster's API server, with the rights of a context's user. It does not retry."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes import client
from kubernetes import config as kubeconfig

ANSWER_SECONDS = 10.0  # for one answer
AT_ONCE = 16  # requests of several threads
JSON, MERGE = "application/json", "application/merge-patch+json"
Object = Mapping[str, Any]


class ClusterError(Exception):
    """The cluster refuses a request, or does not answer: then the status is 0. The message names the cluster and the
    reason."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class ForbiddenError(ClusterError):
    """The context's user has no right to the object."""


class ClusterClient:
    """The cluster of one context. No request is sent later than `seconds` after the client was created."""

    def __init__(self, context: str, seconds: float = math.inf) -> None:
        settings = client.Configuration()
        settings.retries = False
        settings.connection_pool_maxsize = AT_ONCE
        self._api = kubeconfig.new_client_from_config(context=context, client_configuration=settings)
        self._seconds, self._until = seconds, time.monotonic() + seconds
        self.clock: datetime | None = None  # the cluster's, at its last answer
        self.where = f"the cluster at {self._api.configuration.host} (context {context})"

    def get(self, path: str) -> Object | None:
        """One object, or None if it is not there. Raises ClusterError, and so ForbiddenError."""
        try:
            return self.read(path)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def read(self, path: str) -> Object:
        """One object that has to be there. Raises ClusterError, with status 404 if it is not."""
        return self._object("GET", path)

    def items(self, path: str, labels: Mapping[str, str] | None = None, fields: str = "") -> Sequence[Object]:
        """All objects of a kind that have these labels and fields; none if the kind is not known. Raises
        ClusterError."""
        try:
            found = self._object("GET", path, query=_selecting(labels, fields))
        except ClusterError as error:
            if error.status == 404:
                return []
            raise
        items: Sequence[Object] = found["items"]
        return items

    def create(self, path: str, body: Object) -> Object:
        """Creates an object; returns it as the server has it. Raises ClusterError."""
        return self._object("POST", path, body)

    def merge(self, path: str, body: Object, manager: str) -> None:
        """Changes these fields of one object; the manager owns them then. Raises ClusterError."""
        self.text("PATCH", path, body=body, content=MERGE, query={"fieldManager": manager})

    def delete(
        self, path: str, labels: Mapping[str, str] | None = None, propagation: str = "Background", **options: Any
    ) -> None:
        """Deletes one object with its dependents, or all of a kind that have these labels, as far as they are there.
        Raises ClusterError."""
        try:
            self.text("DELETE", path, body={"propagationPolicy": propagation, **options}, query=_selecting(labels))
        except ClusterError as error:
            if error.status != 404:
                raise

    def follow(self, path: str, silent_seconds: float) -> Iterator[str]:
        """The lines of a log until its container ends. Raises ClusterError, also if no line comes for that long."""
        with self._reached():
            response = self._send("GET", path, query={"follow": "true"}, seconds=(ANSWER_SECONDS, silent_seconds))
            try:
                self._refused(response)
                rest = b""
                for chunk in response.response.stream():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line.decode("utf-8", "replace").strip()
            finally:
                response.response.close()

    def text(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        content: str = JSON,
        query: Mapping[str, str] | None = None,
    ) -> str:
        """The server's answer as text. Raises ClusterError."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise ClusterError(0, f"{self.where} did not answer all questions in {self._seconds:.0f} s: try again")
        with self._reached():
            response = self._send(
                method, path, body=body, content=content, query=query, seconds=min(ANSWER_SECONDS, left)
            )
            self._refused(response)
            if date := response.getheader("Date"):
                self.clock = parsedate_to_datetime(date)
            return (response.read() or b"").decode("utf-8", "replace")

    def _object(
        self, method: str, path: str, body: Object | None = None, query: Mapping[str, str] | None = None
    ) -> Object:
        answer = self.text(method, path, body=body, query=query)
        try:
            found: Object = json.loads(answer)
        except ValueError as error:
            raise ClusterError(0, f"{self.where} answers with something other than JSON: {error}") from error
        return found

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        content: str = JSON,
        query: Mapping[str, str] | None = None,
        seconds: float | tuple[float, float],  # for the answer; or to connect, and between two parts of it
    ) -> Any:
        sent = self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json"} | ({} if body is None else {"Content-Type": content}),
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            return self._api.call_api(*sent, _request_timeout=seconds)
        except ValueError:  # its text holds the token
            raise ClusterError(
                0, f"{self.where} cannot be asked: the kubeconfig's token has a line end in it"
            ) from None

    def _refused(self, response: Any) -> None:
        """Raises ClusterError if the answer is an error."""
        if response.status < 300:
            return
        kind = ForbiddenError if response.status == 403 else ClusterError
        raise kind(response.status, f"{self.where} says: {_words(response.read() or b'')} ({response.status})")

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:  # of TLS
            raise ClusterError(0, f"{self.where} does not answer: {error.reason}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(0, f"{self.where} does not answer: {error}") from error


def _selecting(labels: Mapping[str, str] | None, fields: str = "") -> Mapping[str, str]:
    """The query that selects objects with these labels and fields."""
    found = {
        "labelSelector": ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
        "fieldSelector": fields,
    }
    return {key: value for key, value in found.items() if value}


def _words(raw: bytes) -> str:
    """The message in the body of an error."""
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return " ".join(raw.decode("utf-8", "replace").split())[:300] or "an error without a message"
