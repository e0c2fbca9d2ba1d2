"""Requests to the pretended API server, in the API's own words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.support.fake_kubernetes.store import JOBS, NAMESPACES, PODS, Kind, Object, Ref, Refusal

PATH = re.compile(
    r"/(?:apis/(?P<group>batch)/v1|api/v1)/namespaces/(?P<namespace>[^/]+)"
    r"(?:/(?P<resource>jobs|pods)(?:/(?P<name>[^/]+)(?P<log>/log)?)?)?"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, as the API understands it."""

    verb: str
    ref: Ref
    log: bool
    body: Any
    query: Mapping[str, str]
    content: str
    accept: str

    @property
    def resource(self) -> str:
        """As faults and counts call it."""
        return "pods/log" if self.log else self.ref.kind.resource

    @property
    def dry_run(self) -> bool:
        """Whether nothing is to be done."""
        return self.query.get("dryRun") == "All" or "All" in ((self.body or {}).get("dryRun") or ())

    @property
    def options(self) -> Object:
        """The DeleteOptions of a deletion."""
        asked: Object = {name: self.query[name] for name in ("propagationPolicy",) if name in self.query}
        if "gracePeriodSeconds" in self.query:
            asked["gracePeriodSeconds"] = int(self.query["gracePeriodSeconds"])
        return {**asked, **(self.body or {})}


async def understood(request: web.Request) -> Call:
    """A request in the words of the API. Raises Refusal where it means nothing."""
    found = PATH.fullmatch(request.path)
    kinds: Mapping[tuple[str | None, str | None], Kind] = {
        ("batch", "jobs"): JOBS,
        (None, "pods"): PODS,
        (None, None): NAMESPACES,
    }
    kind = kinds.get((found["group"], found["resource"])) if found is not None else None
    if found is None or kind is None or (found["log"] and kind is not PODS):
        raise Refusal(404, "NotFound", "the server could not find the requested resource")
    name = found["namespace"] if kind is NAMESPACES else found["name"] or ""
    verb = _verb(request, bool(name), kind is NAMESPACES or bool(found["log"]))
    raw = await request.read()
    try:
        body = json.loads(raw) if raw.strip() else None
    except ValueError as error:
        raise Refusal(400, "BadRequest", f"the request's body is no JSON: {error}") from error
    if verb == "create":
        if not isinstance(body, dict):
            raise Refusal(400, "BadRequest", "the request has no object")
        name = (body.get("metadata") or {}).get("name", "")
    ref = Ref(kind, "" if kind is NAMESPACES else found["namespace"], name)
    return Call(
        verb, ref, bool(found["log"]), body, request.query, request.content_type, request.headers.get("Accept", "")
    )


def _verb(request: web.Request, one: bool, read_only: bool) -> str:
    watch = request.query.get("watch") in ("1", "true")
    verbs = {"GET": "get", "PATCH": "patch", "DELETE": "delete"} if one else {"POST": "create", "GET": "list"}
    verb = verbs.get(request.method)
    if verb is None or (read_only and verb != "get"):
        raise Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    return "watch" if verb == "list" and watch else verb
