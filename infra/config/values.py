"""The checks of configured values. Each returns the value, or raises ValueError with what it takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from typing import Any, TypeVar
from urllib.parse import urlsplit

from controller.backends.kubernetes.options import job_options as checked_options
from controller.errors import SettingsError
from controller.protocol.names import IMAGE, LABEL, SUBDOMAIN, is_image, is_label, is_subdomain

T = TypeVar("T")

QUANTITY = re.compile(r"(\d+(\.\d+)?|\.\d+)(m|k|[KMGTPE]i|[MGTPE]|[eE]\d+)?")
MAJOR = re.compile(r":(?:[^/]*pg)?(\d+)[^/]*$")  # of Postgres, in an image's name
RESOLVER = "dns"  # among what sandboxes may reach


def one_of(*words: str) -> Callable[[str], str]:
    """A check for one of these words."""

    def check(value: str) -> str:
        if value not in words:
            raise ValueError(f"takes {' or '.join(words)}")
        return value

    return check


def named(valid: Callable[[str], bool], words: str) -> Callable[[str], str]:
    """A check for a name that is valid, which the words describe."""

    def check(value: str) -> str:
        if not valid(value):
            raise ValueError(f"takes {words}")
        return value

    return check


label = named(is_label, f"{LABEL}, such as ci-fixer")
subdomain = named(is_subdomain, f"{SUBDOMAIN}, such as registry-login")
_image = named(is_image, f"{IMAGE}, such as registry.example.com/team/app:1.4")
_registry = named(
    lambda value: is_image(f"{value}/name"),
    "a registry without scheme or closing slash, such as registry.example.com/team",
)


def registry(value: str) -> str:
    """A registry's name, as it is written in an image's."""
    host = _registry(value).partition("/")[0]
    if host == "index.docker.io":
        raise ValueError("takes docker.io for Docker Hub, as images are called there")
    if host != "localhost" and not {".", ":"} & set(host):
        raise ValueError(f"takes the registry's host too, such as docker.io/{value}")
    return value


def text(value: str) -> str:
    """Any text."""
    return value


def boolean(value: str) -> bool:
    """True or false."""
    if value not in ("true", "false"):
        raise ValueError("takes true or false")
    return value == "true"


def whole(least: int, most: int) -> Callable[[str], int]:
    """A check for a whole number within these limits."""

    def check(value: str) -> int:
        if not (value.isascii() and value.isdigit() and least <= int(value) <= most):
            raise ValueError(f"takes a whole number from {least} to {most}")
        return int(value)

    return check


def quantity(value: str) -> str:
    """An amount as Kubernetes writes it."""
    found = QUANTITY.fullmatch(value)
    if found is None or float(found[1]) == 0:
        raise ValueError("takes a Kubernetes quantity, such as 500m, 20 or 64Gi")
    return value


def image(value: str) -> str:
    """An image that stays what it is: by digest, or by a tag that is not latest."""
    tagged, _, digest = _image(value).partition("@")
    tag = tagged.rpartition("/")[2].partition(":")[2]
    if not digest and tag in ("", "latest"):
        raise ValueError("takes an image with a version's tag or a digest: latest may be another image tomorrow")
    return value


def postgres_major(name: str) -> int | None:
    """The major version of Postgres in an image's tag (15.14-bookworm, 2.14-pg16); None if the tag has none."""
    found = MAJOR.search(name.partition("@")[0])
    return int(found[1]) if found else None


def cidr(value: str) -> str:
    """A range of addresses."""
    try:
        return str(ip_network(value))
    except ValueError as error:
        raise ValueError("takes ranges of addresses, such as 10.0.0.0/8") from error


def reached(value: str) -> str:
    """A range of addresses, or the cluster's resolver."""
    try:
        return value if value == RESOLVER else cidr(value)
    except ValueError as error:
        raise ValueError(f"{error}, and {RESOLVER} for the cluster's resolver") from error


def database(value: str) -> str:
    """The owner's URL of a Postgres."""
    try:
        url = urlsplit(value)
        whole_url = url.scheme in ("postgres", "postgresql") and url.hostname and url.username and url.path.strip("/")
        _ = url.port  # raises if it is no number
    except ValueError:
        whole_url = False
    if not whole_url:
        raise ValueError("takes the owner's URL: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return value


def list_of(check: Callable[[str], str]) -> Callable[[str], tuple[str, ...]]:
    """A check for a JSON list of such values."""

    def checked(value: str) -> tuple[str, ...]:
        read = _json(value or "[]")
        if not isinstance(read, list) or not all(isinstance(one, str) for one in read):
            raise ValueError("takes a list")
        return tuple(check(one) for one in read)

    return checked


def options(value: str) -> Mapping[str, Any]:
    """The options that SANDBOX_JOB_OPTIONS takes."""
    read = _json(value or "{}")
    if not isinstance(read, dict):
        raise ValueError("takes an object")
    try:
        checked_options(read)
    except SettingsError as error:
        raise ValueError(str(error).removeprefix("SANDBOX_JOB_OPTIONS: ")) from error
    return read


def optional(check: Callable[[str], T]) -> Callable[[str], T | None]:
    """A check for such a value, or for an empty one, which is None."""
    return lambda value: check(value) if value else None


def _json(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None
