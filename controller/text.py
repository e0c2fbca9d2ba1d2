"""Bytes from anywhere, made into text that Postgres can store."""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def storable(raw: str) -> str:
    """The same text with NUL and lone surrogates replaced."""
    return raw.encode("utf-8", "replace").decode("utf-8").replace("\0", REPLACEMENT)


def tail(raw: bytes, limit: int) -> str:
    """The end of `raw` as text of at most `limit` bytes; what is not UTF-8, and NUL, is replaced."""
    start = max(len(raw) - limit, 0)
    if start:
        start = _whole_character(raw, start)
    text = raw[start:].decode("utf-8", "replace").replace("\0", REPLACEMENT)
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[_whole_character(encoded, len(encoded) - limit) :].decode()


def _whole_character(raw: bytes, start: int) -> int:
    """The first position from `start` on, at most three further, that is not inside a UTF-8 character."""
    for position in range(start, min(start + 4, len(raw))):
        if raw[position] & 0xC0 != 0x80:
            return position
    return start
