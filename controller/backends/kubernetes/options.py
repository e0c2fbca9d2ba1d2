"""The setting SANDBOX_JOB_OPTIONS: its fields and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from pydantic import AfterValidator, TypeAdapter, ValidationError

from controller.errors import SettingsError
from controller.protocol.names import SUBDOMAIN, is_label_value, is_subdomain


def _name(text: str) -> str:
    if not is_subdomain(text):
        raise ValueError(f"must be {SUBDOMAIN}")
    return text


def _label_key(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if (slash and not is_subdomain(prefix)) or not name or not is_label_value(name):
        raise ValueError("must be a label's key, such as kubernetes.io/arch")
    return text


def _label_value(text: str) -> str:
    if not is_label_value(text):
        raise ValueError("must be a label's value: at most 63 letters, digits, -, _ and .")
    return text


def _toleration(given: dict[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        if name not in TOLERATION:
            raise ValueError(f"{name} is no field of a toleration; there are {', '.join(TOLERATION)}")
        if not isinstance(value, TOLERATION[name]) or isinstance(value, bool):
            raise ValueError(f"{name} must be {'a number' if TOLERATION[name] is int else 'a text'}")
    return given


TOLERATION = {"key": str, "operator": str, "value": str, "effect": str, "tolerationSeconds": int}
Name = Annotated[str, AfterValidator(_name)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Toleration = Annotated[dict[str, Any], AfterValidator(_toleration)]


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The value of SANDBOX_JOB_OPTIONS, for every Job, with Kubernetes' own field names."""

    runtimeClassName: Name | None = None
    nodeSelector: Mapping[LabelKey, LabelValue] = field(default_factory=dict)
    tolerations: Sequence[Toleration] = ()
    priorityClassName: Name | None = None
    imagePullSecrets: Sequence[Name] = ()
    queue: Name | None = None  # a LocalQueue of Kueue in the sandbox namespace


def job_options(given: Mapping[str, Any]) -> JobOptions:
    """Checks the setting's value. Raises SettingsError, which names the option and what it takes."""
    known = [field.name for field in fields(JobOptions)]
    for name in given:
        if name not in known:
            raise SettingsError(f"SANDBOX_JOB_OPTIONS: {name} is no option; there are {', '.join(known)}")
    try:
        return TypeAdapter(JobOptions).validate_python(dict(given))
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"])
        told = fault["msg"].removeprefix("Value error, ")
        raise SettingsError(f"SANDBOX_JOB_OPTIONS: {name} = {str(fault['input'])[:100]!r}: {told}") from None
