"""Checks between the keys of a configuration: their problems come with those of single keys."""

from __future__ import annotations

from typing import Any

import pytest

from dst.common.config import build
from dst.common.config_class import Positive, config_class


@config_class
class Range:
    low: Positive = 1
    high: Positive = 9
    step: Positive = 1
    words: tuple[str, ...] = ()


def in_order(made: Range) -> list[str]:
    return [
        *([f"low: got {made.low}; expected less than high"] if made.low >= made.high else []),
        *([f"step: got {made.step}; expected 5 at most"] if made.step > 5 else []),
    ]


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"low": 9, "step": 6}, ["low: got 9; expected less than high", "step: got 6; expected 5 at most"]),
        ({"low": 9, "hihg": 10}, ["hihg: unknown key; did you mean high?", "low: got 9; expected less than high"]),
        ({"low": 9, "words": 3}, ["words: got a number; expected a list", "low: got 9; expected less than high"]),
        ({"low": 9, "high": 0, "step": 6}, ["high: got 0; expected at least 1", "step: got 6; expected 5 at most"]),
        ({"low": "9"}, ["low: got text '9'; expected a whole number"]),
    ],
)
def test_checks_between_keys_come_with_the_rest_unless_a_wrong_key_is_part_of_them(
    values: dict[str, Any], problems: list[str]
) -> None:
    assert build(Range, values, check=in_order)[1] == problems
