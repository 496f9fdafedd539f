"""The rows of a table of measures with right and wrong images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongImages:
    """A measure with wrong images. difference: value - right. margin: half the width of its 95% interval.

    margin is None where there is none: BLEU is not a mean of answers, and one image tells nothing of others.
    """

    value: float
    difference: float
    margin: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindRow:
    """A measure of a dataset: with the right images, and with wrong ones. samples: how many it is the mean of."""

    dataset: str
    measure: str
    samples: int
    right: float
    exchanged: WrongImages
    blank: WrongImages


def difference_text(wrong: WrongImages) -> str:
    """`+0.1234 ± 0.0100`"""
    margin = "" if wrong.margin is None else f" \u00b1 {wrong.margin:.4f}"
    return f"{wrong.difference:+.4f}{margin}"


def as_json(rows: Iterable[BlindRow]) -> list[dict[str, Any]]:
    """For --json."""
    return [
        {
            "dataset": row.dataset,
            "measure": row.measure,
            "samples": row.samples,
            "right": row.right,
            **{
                name: {"value": wrong.value, "difference": wrong.difference, "margin": wrong.margin}
                for name, wrong in (("exchanged", row.exchanged), ("blank", row.blank))
            },
        }
        for row in rows
    ]
