"""dst.control_tokens against brute force: which text can take part in a control string, and where it must be cut."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from dst.control_tokens import ControlStrings, Cut, Fenced, choose_fences, remove_fences

# Few letters and short strings, so that overlaps of every kind come up.
strings = st.sets(st.text(alphabet="ab<>", min_size=2, max_size=5), min_size=1, max_size=5)
texts = st.text(alphabet="ab<>", max_size=7)


def can_take_part(text: str, control: str) -> bool:
    """Whether some text on either side lets the control string stand over at least one character of the text."""
    for offset in range(-len(control) + 1, len(text)):
        overlap = range(max(0, offset), min(len(text), offset + len(control)))
        if overlap and all(text[index] == control[index - offset] for index in overlap):
            return True
    return False


@given(strings=strings, text=texts)
@example(strings={"<image>"}, text="mag")
def test_touches_finds_every_text_that_could_take_part(strings: set[str], text: str) -> None:
    if any(can_take_part(text, control) for control in strings):
        assert ControlStrings(strings).touches(text)


@given(strings=strings)
def test_far_off_text_does_not_touch(strings: set[str]) -> None:
    assert not ControlStrings(strings).touches("A red bus.")
    assert not ControlStrings(strings).touches("")
    assert not ControlStrings([]).touches("A red bus.")


@given(strings=strings, pieces=st.lists(st.tuples(texts, st.booleans()), max_size=6), data=st.data())
def test_cuts_break_all_that_holds_data_and_nothing_else(
    strings: set[str], pieces: list[tuple[str, bool]], data: st.DataObject
) -> None:
    """The pieces alternate between data and template as they like; segments are cut at one random place."""
    text, ranges = "", []
    for piece, is_data in pieces:
        if is_data and piece:
            ranges.append((len(text), len(text) + len(piece)))
        text += piece
    middle = data.draw(st.integers(0, len(text)))
    segments = [(start, end) for start, end in ((0, middle), (middle, len(text))) if start < end]
    cuts = {cut.position for cut in ControlStrings(strings).cuts(Fenced(text, tuple(ranges)), segments)}
    borders = sorted({0, middle, len(text), *cuts})
    whole = {
        (start, end)
        for control in strings
        for start in range(len(text))
        for end in [start + len(control)]
        if text.startswith(control, start) and not any(start < border < end for border in borders)
    }
    of_data = {(start, end) for start, end in whole if any(low < end and start < high for low, high in ranges)}
    assert not of_data
    for cut in cuts:  # never inside the template's own text
        assert any(low <= cut <= high for low, high in ranges)


def test_cuts_stand_at_the_datas_edge_and_spare_what_a_segment_border_breaks() -> None:
    control, fenced = ControlStrings({"<image>"}), Fenced("a <image>", ((5, 9),))
    assert list(control.cuts(fenced, [(0, 9)])) == [Cut(5, within_one_text=False)]
    assert list(control.cuts(fenced, [(0, 4), (4, 9)])) == []
    assert list(control.cuts(Fenced("a <image>", ((0, 9),)), [(0, 9)])) == [Cut(3, within_one_text=True)]


@given(texts=st.lists(st.text() | st.sampled_from(["\ufdd0", "\ufdd1\ufdd0", "  x \n", " "]), max_size=5))
def test_fences_come_off_and_show_the_data(texts: list[str]) -> None:
    fences = choose_fences(texts)
    fenced = remove_fences("".join(fences.around(text) + "|" for text in texts), fences)
    assert fenced is not None
    assert fenced.text == "".join(text + "|" for text in texts)
    assert [fenced.text[start:end] for start, end in fenced.data] == [text.strip() for text in texts if text.strip()]


def test_torn_fences_are_noticed() -> None:
    fences = choose_fences([])
    whole = fences.around("abc")
    for torn in (whole[:-1], whole[1:], whole[::-1], whole + whole[1:], whole[:-1] + whole, whole + fences.opening):
        assert remove_fences(torn, fences) is None
