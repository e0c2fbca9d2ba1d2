"""Bytes from anywhere become text that Postgres can store, of no more than was asked, and what a terminal can show."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as some

from controller.protocol.text import encodable, harmless, storable, tail, visible, without_addresses

ANY_TEXT = some.text(some.characters())  # lone surrogates and NUL among them
PIECES = some.sampled_from(
    [b"a", b"\n", "é".encode(), "€".encode(), "😀".encode(), b"\0", b"\xff", b"\xe2\x82", b"\xa9"]
)
OUTPUT = some.binary(max_size=60) | some.lists(PIECES, max_size=40).map(b"".join)


def can_be_stored(text: str) -> bool:
    text.encode("utf-8")  # raises for a lone surrogate
    return "\0" not in text


@given(ANY_TEXT)
def test_any_text_becomes_storable(raw: str) -> None:
    assert can_be_stored(storable(raw))


@given(some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_what_was_storable_is_left_as_it_was(raw: str) -> None:
    assert storable(raw) == raw


@given(OUTPUT, some.integers(0, 70))
def test_a_tail_is_storable_and_never_over_its_limit(raw: bytes, limit: int) -> None:
    text, _ = tail(raw, limit)
    assert can_be_stored(text)
    assert len(text.encode()) <= limit


@given(some.text(some.characters(exclude_categories=["Cs"], exclude_characters="\0")), some.integers(0, 70))
def test_a_tail_is_the_end_and_loses_no_more_than_a_cut_character(raw: str, limit: int) -> None:
    encoded = raw.encode()
    text, cut = tail(encoded, limit)
    assert raw.endswith(text)
    assert cut == (text != raw)
    assert len(text.encode()) > min(len(encoded), limit) - 4


@given(OUTPUT, some.integers(0, 70))
def test_it_is_told_when_something_was_cut(raw: bytes, limit: int) -> None:
    whole, _ = tail(raw, 3 * len(raw) + 1)
    text, cut = tail(raw, limit)
    assert cut == (len(raw) > limit or len(whole.encode()) > limit)
    assert cut or text == whole


def test_a_glyph_split_at_the_cut_leaves_no_trace() -> None:
    assert tail("a€b".encode(), 3) == ("b", True)
    assert tail("a€b".encode(), 4) == ("€b", True)
    assert tail("😀".encode(), 3) == ("", True)


def test_what_is_not_utf8_is_replaced_and_still_fits() -> None:
    assert tail(b"a\xffb\0c", 100) == ("a\ufffdb\ufffdc", False)
    assert tail(b"\xff" * 10, 10) == ("\ufffd" * 3, True)
    assert tail("grüße".encode("utf-16"), 100)[1] is False


@given(ANY_TEXT)
def test_visible_text_is_printable_and_keeps_what_was(text: str) -> None:
    assert visible(text).isprintable()
    assert not text.isprintable() or visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\n\ttwo  é€ 😀\u3000\xa0\n", "one\n\ttwo  é€ 😀\u3000\xa0\n"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),  # one emoji of two
        ("a\r\nb\r\r\n", "a\r\nb\r\r\n"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b]52;c;bHM=\x1b\\", r"\x1b]52;c;bHM=\x1b" + "\\"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2Jgone\x9d0;t\x9c", r"\x9b2Jgone\x9d0;t\x9c"),
        ("rm -rf /\rls      ", r"rm -rf /\rls      "),
        ("\rls", r"\rls"),
        ("secret\b\b\x7f", r"secret\x08\x08\x7f"),
        ("a\u202etxt.exe\u2066\u200e\u061c", r"a\u202etxt.exe\u2066\u200e\u061c"),
        ("a\u2028b\u2029c\x85d\x0b\x0ce", r"a\u2028b\u2029c\x85d\x0b\x0ce"),
        ("\U000e0041\ufeff\ufff9", r"\U000e0041\ufeff\ufff9"),
    ],
)
def test_harmless_text_steers_no_terminal_and_stays_readable(text: str, shown: str) -> None:
    assert harmless(text) == shown


@given(ANY_TEXT)
def test_harmless_text_has_no_control_but_ends_of_lines_and_tabs(text: str) -> None:
    shown = harmless(text)
    assert not {c for c in shown.replace("\r", "") if ord(c) < 32 or 127 <= ord(c) < 160} - {"\n", "\t"}
    assert not re.search(r"\r+[^\r\n]|\r\Z", shown)


@given(ANY_TEXT, some.sampled_from(["ascii", "latin-1", "utf-8"]))
def test_encodable_text_can_be_encoded_and_keeps_what_could(text: str, encoding: str) -> None:
    shown = encodable(text, encoding)
    shown.encode(encoding)
    assert not text.isascii() or shown == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('server at "10.1.2.3", port 5432: bad password for user "u"', "server at …, …: bad password for user …"),
        ('no entry for host "fe80::1%eth0", user "u", database "d"', "no entry for host …, user …, database …"),
        ('connection to server on socket "/run/.s.PGSQL.5432" failed', "connection to server on socket … failed"),
        ("the Docker engine at tcp://10.0.0.7:2375 does not answer: x", "the Docker engine at … does not answer: x"),
        ("Cannot connect to host engine.internal:2375 ssl:default", "Cannot connect to host … ssl:default"),
        ("[Connect call failed ('10.0.0.7', 2375)]", "[Connect call failed ('…', 2375)]"),
        ("at [2001:db8::1]:6443 or 2001:db8::1 or ::1", "at … or … or …"),
        ("no right to use /var/run/docker.sock: join", "no right to use …: join"),
        ("the database's min_code_version is 998, and the controller's 3: run `python -m controller migrate`",) * 2,
        ("the engine is being repaired: wait",) * 2,
    ],
)  # fmt: skip
def test_what_strangers_read_names_no_address_and_no_login(text: str, told: str) -> None:
    assert without_addresses(text) == told
