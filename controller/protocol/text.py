"""Turns text from anywhere into what Postgres can store and what a terminal can show."""

from __future__ import annotations

import re
from unicodedata import category

REPLACEMENT = "\ufffd"
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories: controls, formats (bidi among them), surrogates, separators
HARMLESS = "\n\t\u200c\u200d"  # the last two join and part letters and emojis
ADDRESS = re.compile(
    r"""  "[^"]*" | [\w.+-]+://\S+ | (?<!\w)/[^\s:;,)]+ | \bport\s\d+ | \[[0-9a-f:.%]+\](:\d+)?
        | \b[\w-][\w.-]*:\d+\b | \b\d{1,3}(\.\d{1,3}){3}\b | (?<![\w:])[0-9a-f]*:[0-9a-f:]*:[0-9a-f:.]*(?![\w:])""",
    re.VERBOSE | re.IGNORECASE,
)
LINE_END = re.compile(r"(\r+)(?=\n)")


def storable(raw: str) -> str:
    """Return the text with NUL and lone surrogates replaced."""
    return raw.encode("utf-8", "replace").decode("utf-8").replace("\0", REPLACEMENT)


def tail(raw: bytes, limit: int) -> tuple[str, bool]:
    """Return the end of `raw` as text of at most `limit` bytes, and whether something before it was cut off.

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


def visible(text: str) -> str:
    """Return the text on one line, with whatever could steer a terminal, or does not show, escaped."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def harmless(text: str) -> str:
    """Return the text, lines and all, with whatever could steer a terminal escaped.

    A carriage return steers nothing just before a line's end; elsewhere it lets later text hide what came before.
    """
    parts = LINE_END.split(text)  # every second part is the carriage returns of a line's end
    parts[::2] = ["".join(_escape(c) if _steers(c) else c for c in part) for part in parts[::2]]
    return "".join(parts)


def encodable(text: str, encoding: str) -> str:
    """Return the text in that encoding's characters, with those that it lacks escaped; an ellipsis becomes dots."""
    try:
        text.encode(encoding)
        return text
    except UnicodeError:
        return text.replace("\u2026", "...").encode(encoding, "backslashreplace").decode(encoding)


def without_addresses(text: str) -> str:
    """Return the text without what would tell a stranger where things are: quoted words (logins, hosts and databases in
    Postgres' errors), URLs, addresses, ports and sockets."""
    return ADDRESS.sub("…", text)


def _steers(character: str) -> bool:
    return not character.isprintable() and category(character) in STEERING and character not in HARMLESS


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _whole_character(raw: bytes, start: int) -> int:
    """Return the first position from `start` on, at most three further, that is not inside a UTF-8 character."""
    last = min(start + 4, len(raw))
    for position in range(start, last):
        if raw[position] & 0xC0 != 0x80:
            return position
    return start if last < len(raw) else last
