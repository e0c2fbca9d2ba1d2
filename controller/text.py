"""Bytes from anywhere, made into text that Postgres can store."""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def storable(raw: str) -> str:
    """The same text with NUL and lone surrogates replaced."""
    return raw.encode("utf-8", "replace").decode("utf-8").replace("\0", REPLACEMENT)


def tail(raw: bytes, limit: int) -> tuple[str, bool]:
    """The end of `raw` as text of at most `limit` bytes, and whether something before it was cut off.

    What is not UTF-8, and NUL, is replaced.
    """
    start = max(len(raw) - limit, 0)
    if start:
        start = _whole_character(raw, start)
    text = raw[start:].decode("utf-8", "replace").replace("\0", REPLACEMENT)
    encoded = text.encode()
    if len(encoded) <= limit:
        return text, start > 0
    return encoded[_whole_character(encoded, len(encoded) - limit) :].decode(), True


def _whole_character(raw: bytes, start: int) -> int:
    """The first position from `start` on, at most three further, that is not inside a UTF-8 character."""
    last = min(start + 4, len(raw))
    for position in range(start, last):
        if raw[position] & 0xC0 != 0x80:
            return position
    return start if last < len(raw) else last
