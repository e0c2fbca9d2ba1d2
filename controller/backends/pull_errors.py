"""What engines say of an image that they cannot pull: whether another try may be of use."""

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


def is_permanent_pull_error(words: str, image: str) -> bool:
    """Whether an engine's words about a pull of that image mean: no such image, or no right to it."""
    said = QUOTED.sub("", words).replace(image, "")  # an image's own name may hold any of the words
    return PERMANENT.search(said) is not None and RATE_LIMITED.search(said) is None
