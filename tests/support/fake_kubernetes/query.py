"""What a request asks of the pretended API server: which objects, in which form, and in which pages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.support.fake_kubernetes.store import Kind, Match, Object, Refusal, Store

TERM = re.compile(r"(!?)([\w./-]+)(?:(==|=|!=)([\w.-]*))?")
EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list."
)


def selector(query: Mapping[str, str]) -> Match:
    """Whether an object is one of those asked for."""
    labels = _terms(query.get("labelSelector", ""), lambda found, key: (found["metadata"].get("labels") or {}).get(key))
    fields = _terms(query.get("fieldSelector", ""), _field)
    return lambda found: all(term(found) for term in (*labels, *fields))


def _terms(text: str, value: Callable[[Object, str], Any]) -> Sequence[Match]:
    return [_term(part.strip(), value) for part in text.split(",") if part.strip()]


def _term(text: str, value: Callable[[Object, str], Any]) -> Match:
    parsed = TERM.fullmatch(text)
    if parsed is None or (parsed[1] and parsed[3]):
        raise Refusal(400, "BadRequest", f"unable to parse requirement: {text}")
    key, wanted = parsed[2], parsed[4]
    match parsed[1], parsed[3]:
        case "!", _:
            return lambda found: value(found, key) is None
        case _, None:
            return lambda found: value(found, key) is not None
        case _, "!=":
            return lambda found: bool(value(found, key) != wanted)
    return lambda found: bool(value(found, key) == wanted)


def _field(found: Object, path: str) -> str:
    value: Any = found
    for part in path.split("."):
        value = value.get(part) or "" if isinstance(value, dict) else ""
    return str(value)


def metadata_only(accept: str, verb: str) -> bool:
    """Which form the Accept header prefers of those that there are. Raises Refusal where there is none."""
    form = "PartialObjectMetadataList" if verb == "list" else "PartialObjectMetadata"
    for clause in (accept or "*/*").split(","):
        kind, *parameters = (part.strip() for part in clause.split(";"))
        said = dict(part.partition("=")[::2] for part in parameters)
        if kind not in ("application/json", "application/*", "*/*"):
            continue
        if "as" not in said:
            return False
        if (said["as"], said.get("g"), said.get("v")) == (form, "meta.k8s.io", "v1"):
            return True
    message = "only the following media types are accepted: application/json"
    raise Refusal(406, "NotAcceptable", message)


def shown(found: Object, slim: bool) -> Object:
    """An object in the form that was asked for."""
    if not slim:
        return found
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": found["metadata"]}


class Lists:
    """Lists in pages, all pages of one moment; a token of a moment that is forgotten is refused."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._moments: dict[int, Sequence[Object]] = {}  # what is not yet told, by the version of its list

    def forget(self) -> None:
        """Every token given out so far has expired."""
        self._moments.clear()

    def page(self, kind: Kind, namespace: str, query: Mapping[str, str], slim: bool) -> Object:
        """One page. Raises Refusal."""
        match, limit = selector(query), int(query.get("limit") or 0)
        version, after = self._store.version, ""
        if query.get("continue"):
            version, after = self._continued(query["continue"])
        elif query.get("resourceVersion") == "0":
            limit = 0  # answered from a cache that knows no pages
        everything = self._moments.get(version) if after else None
        if everything is None:
            everything = self._store.all(kind, namespace)
        found = [one for one in everything if one["metadata"]["name"] > after and match(one)]
        page = found[:limit] if limit else found
        meta: Object = {"resourceVersion": str(version)}
        if len(page) < len(found):
            self._moments[version] = everything
            meta["continue"] = _token(version, page[-1]["metadata"]["name"])
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                meta["remainingItemCount"] = len(found) - len(page)
        return _list(kind, page, meta, slim)

    def _continued(self, token: str) -> tuple[int, str]:
        """Of which moment a token is, and after which name it goes on."""
        try:
            version, after = json.loads(base64.urlsafe_b64decode(token))
        except ValueError as error:
            raise Refusal(400, "BadRequest", "continue key is not valid") from error
        if version < 0:
            return self._store.version, after
        if version not in self._moments or version < self._store.oldest:
            raise Refusal(410, "Expired", EXPIRED, token=_token(-1, after))
        return version, after


def _token(version: int, after: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([version, after]).encode()).decode()


def _list(kind: Kind, page: Sequence[Object], meta: Object, slim: bool) -> Object:
    if slim:
        items = [shown(one, True) for one in page]
        return {
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": meta,
            "items": items,
        }
    items = [{name: value for name, value in one.items() if name not in ("kind", "apiVersion")} for one in page]
    return {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": meta, "items": items}


def log_part(log: bytes, query: Mapping[str, str]) -> bytes:
    """The part of a log that was asked for: its last lines, and of these the first bytes."""
    if query.get("tailLines"):
        lines = log.splitlines(keepends=True) if b"\r" not in log else re.findall(rb"[^\n]*\n|[^\n]+", log)
        count = int(query["tailLines"])
        log = b"".join(lines[-count:]) if count else b""
    return log[: int(query["limitBytes"])] if query.get("limitBytes") else log
