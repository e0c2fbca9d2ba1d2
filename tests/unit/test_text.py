"""Bytes from anywhere become text that Postgres can store, of no more than was asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from controller.text import storable, tail

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
