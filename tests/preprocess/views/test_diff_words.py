"""Word diffs lose no character and stay fast."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from preprocess.views.diff_words import MOST_WORDS, shorten, word_diff

WORDS = st.lists(st.sampled_from(["a ", "b ", "cat", ".", "\n", "  ", "é", "\u202e"]), max_size=12).map("".join)


@given(WORDS, WORDS)
def test_the_old_and_the_new_text_can_be_read_out_of_the_pieces(old: str, new: str) -> None:
    pieces = word_diff(old, new)
    assert "".join(text for mark, text in pieces if mark != "+") == old
    assert "".join(text for mark, text in pieces if mark != "-") == new
    assert all(text for _, text in pieces)
    assert all(mark == "=" for mark, _ in pieces) == (old == new)


def test_changed_words_are_marked_and_neighbours_are_one_change() -> None:
    assert word_diff("It is a red cat.", "It is one blue cat.") == (
        ("=", "It is "),
        ("-", "a red"),
        ("+", "one blue"),
        ("=", " cat."),
    )


def test_very_different_long_texts_are_one_deletion_and_one_insertion() -> None:
    old, new = ("".join(f"{name}{number} " for number in range(MOST_WORDS)) for name in "ab")
    assert word_diff(f"same {old}end", f"same {new}end") == (
        ("=", "same "),
        ("-", old[:-1]),
        ("+", new[:-1]),
        ("=", " end"),
    )


def test_unchanged_text_far_from_a_change_is_left_out_and_counted() -> None:
    pieces = word_diff("a" * 100 + " old " + "b" * 50, "a" * 100 + " new " + "b" * 50)
    assert shorten(pieces, 10) == (
        ("=", f" … 91 characters … {'a' * 9} "),
        ("-", "old"),
        ("+", "new"),
        ("=", f" {'b' * 9} … 41 characters … "),
    )
    assert shorten(pieces, 100) == pieces
