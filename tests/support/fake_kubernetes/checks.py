"""What the pretended API server refuses as invalid, in the real one's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.support.fake_kubernetes.store import JOBS, Kind, Object, Refusal

NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MOST_SECONDS = 2**31 - 1
MUTABLE = ("activeDeadlineSeconds", "schedulingGates", "tolerations", "terminationGracePeriodSeconds", "containers")
FIXED = ("template", "selector", "completions", "completionMode")  # of a Job


class Fault(NamedTuple):
    """One field that is wrong."""

    field: str
    reason: str  # Required, Invalid, Forbidden
    words: str = ""


def refuse(kind: Kind, name: str, faults: Iterator[Fault]) -> None:
    """Raises Refusal where there are any."""
    found = list(faults)
    if not found:
        return
    kinds = {"Required": "Required value", "Invalid": "Invalid value", "Forbidden": "Forbidden"}
    said = [": ".join(filter(None, (kinds[one.reason], one.words))) for one in found]
    parts = [f"{one.field}: {words}" for one, words in zip(found, said, strict=True)]
    whole = parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
    causes = [
        {"reason": f"FieldValue{one.reason}", "message": words, "field": one.field}
        for one, words in zip(found, said, strict=True)
    ]
    title = f"{kind.kind}.{kind.group}" if kind.group else kind.kind
    details = {**kind.details(name), "kind": kind.kind, "causes": causes}
    raise Refusal(422, "Invalid", f'{title} "{name}" is invalid: {whole}', details)


def check_new(kind: Kind, made: Object) -> None:
    """Raises Refusal for an object that can't be made."""
    refuse(kind, made["metadata"].get("name", ""), _new_faults(kind, made))


def check_change(kind: Kind, before: Object, after: Object) -> None:
    """Raises Refusal for a change that can't be made."""
    name = before["metadata"]["name"]
    refuse(kind, name, _job_changes(before, after) if kind is JOBS else _pod_changes(before["spec"], after["spec"]))


def _new_faults(kind: Kind, made: Object) -> Iterator[Fault]:
    meta, spec = made["metadata"], made.get("spec") or {}
    name = meta.get("name", "")
    if not name:
        yield Fault("metadata.name", "Required", "name or generateName is required")
    elif not NAME.fullmatch(name) or len(name) > 253:
        yield Fault("metadata.name", "Invalid", f'"{name}": a lowercase RFC 1123 subdomain must consist of …')
    yield from _labels(meta, "metadata.labels")
    if kind is JOBS:
        template = spec.get("template") or {}
        yield from _labels(template.get("metadata") or {}, "spec.template.metadata.labels")
        yield from _pod(template.get("spec") or {}, "spec.template.spec", job=True)
    else:
        yield from _pod(spec, "spec", job=False)


def _labels(meta: Object, at: str) -> Iterator[Fault]:
    for value in (meta.get("labels") or {}).values():
        if not isinstance(value, str) or not LABEL.fullmatch(value):
            yield Fault(at, "Invalid", f'"{value}": a valid label must be an empty string or consist of …')


def _pod(spec: Object, at: str, *, job: bool) -> Iterator[Fault]:
    if not spec.get("containers"):
        yield Fault(f"{at}.containers", "Required")
    for number, container in enumerate(spec.get("containers") or ()):
        for field in ("name", "image"):
            if not container.get(field):
                yield Fault(f"{at}.containers[{number}].{field}", "Required")
    if job and spec.get("restartPolicy") not in ("Never", "OnFailure"):
        yield Fault(f"{at}.restartPolicy", "Required", 'valid values: "OnFailure", "Never"')
    if spec.get("schedulingGates") and spec.get("nodeName"):
        yield Fault(f"{at}.nodeName", "Forbidden", "cannot be set until all schedulingGates have been cleared")
    yield from _deadline(spec.get("activeDeadlineSeconds"), f"{at}.activeDeadlineSeconds")


def _deadline(seconds: Any, at: str) -> Iterator[Fault]:
    if seconds is not None and not (isinstance(seconds, int) and 1 <= seconds <= MOST_SECONDS):
        yield Fault(at, "Invalid", f"{seconds}: must be between 1 and {MOST_SECONDS}, inclusive")


def _job_changes(before: Object, after: Object) -> Iterator[Fault]:
    for field in FIXED:
        if before["spec"].get(field) != after["spec"].get(field):
            yield Fault(f"spec.{field}", "Invalid", "field is immutable")
    yield from _labels(after["metadata"], "metadata.labels")


def _pod_changes(before: Object, after: Object) -> Iterator[Fault]:
    gates = [gate["name"] for gate in before.get("schedulingGates") or ()]
    for gate in after.get("schedulingGates") or ():
        if gate["name"] not in gates:
            words = f"only deletion is allowed, but found new scheduling gate '{gate['name']}'"
            yield Fault("spec.schedulingGates", "Forbidden", words)
    at, old, new = "spec.activeDeadlineSeconds", before.get("activeDeadlineSeconds"), after.get("activeDeadlineSeconds")
    yield from _deadline(new, at)
    if old is not None and new is None:
        yield Fault(at, "Invalid", "null: must not update from a positive integer to nil value")
    elif old is not None and isinstance(new, int) and new > old:
        yield Fault(at, "Invalid", f"{new}: must be less than or equal to previous value")
    if _fixed(before) != _fixed(after):
        yield Fault("spec", "Forbidden", f"pod updates may not change fields other than {', '.join(MUTABLE)}")


def _fixed(spec: Object) -> Object:
    kept = {name: value for name, value in spec.items() if name not in MUTABLE}
    containers = [{**one, "image": None} for one in spec["containers"]]
    return kept | {"containers": containers}
