"""Rules over the sizes of images: what they keep is what an obvious loop keeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.filters.image_rules import broken_image_rule
from preprocess.filters.rules import Filter, Range

BOUND = st.none() | st.integers(0, 12)
RANGE = st.none() | st.builds(lambda low, high: Range(min=low, max=high), BOUND, BOUND)
SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=3)


def within(bounds: Range | None, value: float) -> bool:
    if bounds is None:
        return True
    above = bounds.min is None or value >= bounds.min
    return above and (bounds.max is None or value <= bounds.max)


@given(RANGE, RANGE, RANGE, RANGE, SIZES)
def test_what_rules_keep_is_what_an_obvious_loop_keeps(
    width: Range | None,
    height: Range | None,
    shorter: Range | None,
    ratio: Range | None,
    sizes: list[tuple[int, int]],
) -> None:
    rules = Filter(image_width=width, image_height=height, image_shorter_side=shorter, aspect_ratio=ratio).image_rules
    expected = True
    for wide, high in sizes:
        if not (within(width, wide) and within(height, high) and within(shorter, wide if wide < high else high)):
            expected = False
        if not within(ratio, wide / high if wide > high else high / wide):
            expected = False
    assert (broken_image_rule(rules, sizes) is None) == expected


@pytest.mark.parametrize(
    ("rules", "detail"),
    [
        (Filter(aspect_ratio=Range(max=4)), "aspect_ratio: image 2 is 900x100, 9; expected at most 4"),
        (
            Filter(image_shorter_side=Range(min=224)),
            "image_shorter_side: image 2 is 900x100, 100; expected at least 224",
        ),
        (Filter(image_width=Range(max=640)), "image_width: image 2 is 900x100, 900; expected at most 640"),
        (Filter(image_height=Range(min=200, max=600)), "image_height: image 2 is 900x100, 100; expected 200 to 600"),
        (Filter(images=Range(min=9)), "None"),
    ],
)
def test_a_reject_names_the_rule_the_image_and_its_size(rules: Filter, detail: str) -> None:
    assert str(broken_image_rule(rules.image_rules, [(640, 480), (900, 100)])) == detail
