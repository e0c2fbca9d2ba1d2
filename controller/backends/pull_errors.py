"""Classifies the errors of image pulls, which every engine hands on in a registry's or a runtime's own words."""

from __future__ import annotations

import re

RATE_LIMITED = re.compile(r"toomanyrequests|too many requests|rate limit|\b429\b", re.IGNORECASE)
PERMANENT = re.compile(
    r"not found|manifest unknown|name unknown|does not exist|no such image"
    r"|denied|unauthorized|forbidden|no basic auth credentials|authentication required|authorization failed"
    r"|no match(ing manifest)? for|invalid reference format|cannot be used on this platform"
    r"|x509:|does not look like a TLS handshake|server gave HTTP response to HTTPS client"
    r"|unsupported (media ?type|manifest)",
    re.IGNORECASE,
)
QUOTED = re.compile(r'"[^"]*"')


def is_permanent_pull_error(message: str, image: str) -> bool:
    """Whether the message means that the image does not exist or is not accessible, so that a retry is useless."""
    bare = QUOTED.sub("", message).replace(image, "")  # an image's own name may contain any of the words
    return PERMANENT.search(bare) is not None and RATE_LIMITED.search(bare) is None
