"""The grammars of names that others define: images, and Kubernetes objects."""

from __future__ import annotations

import re

_HOST_PART = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?=[^/]*[.:]|localhost/){_HOST_PART}(?:\.{_HOST_PART})*(?::[0-9]{{1,5}})?/"
_PATH_PART = "[a-z0-9]+(?:(?:[.]|_|__|-+)[a-z0-9]+)*"
# https://github.com/distribution/reference/blob/main/reference.go
_REFERENCE = re.compile(
    rf"(?:{_HOST})?{_PATH_PART}(?:/{_PATH_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?"
)
_LABEL = re.compile("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123
_LABEL_VALUE = re.compile("(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_SUBDOMAIN_MOST = 253

IMAGE = "an image reference, [registry/]name[:tag][@sha256:digest], its name in lower case, of at most 500 characters"
LABEL = "at most 63 lower-case letters, digits and -, with a letter or a digit at both ends"
SUBDOMAIN = "at most 253 lower-case letters, digits, - and ., with a letter or a digit at both ends of each part"


def is_image(text: str) -> bool:
    """Return whether the text is what IMAGE says, which every engine and the table's own check accept."""
    return len(text) <= 500 and _REFERENCE.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Return whether the text is what LABEL says: the name of a Kubernetes namespace."""
    return _LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    """Return whether the text is what SUBDOMAIN says: the name of most Kubernetes objects."""
    return len(text) <= _SUBDOMAIN_MOST and all(is_label(part) for part in text.split("."))


def is_label_value(text: str) -> bool:
    """Return whether a Kubernetes label may have this value."""
    return _LABEL_VALUE.fullmatch(text) is not None
