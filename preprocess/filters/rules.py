"""The keys of `filter:`, and what is wrong with them before data is read.

Rule: a record is kept if every rule holds. A rule about answers or images holds if it holds for each of them. The
first rule that does not hold, in the order of the keys below, is the one that drops the record.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from dst.common.config_class import config_class
from preprocess.conversation import Scalar
from preprocess.filters import language


@config_class
class Range:
    """Numbers from min to max, both included."""

    min: float | None = None
    """The smallest number that is kept."""
    max: float | None = None
    """The largest number that is kept."""

    def holds(self, value: float) -> bool:
        """Whether a number is within the bounds; NaN never is."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max) and value == value

    def __str__(self) -> str:
        if self.min is not None and self.max is not None:
            return f"{self.min:g} to {self.max:g}"
        return f"at least {self.min:g}" if self.min is not None else f"at most {self.max:g}"


@config_class
class FieldRule:
    """What the value of one field may be; every key that is given has to hold."""

    min: float | None = None
    """The smallest number that is kept."""
    max: float | None = None
    """The largest number that is kept."""
    any_of: tuple[Scalar, ...] = ()
    """The only values that are kept. Text, numbers and true or false are different: "3" is not 3."""
    none_of: tuple[Scalar, ...] = ()
    """Values that are dropped."""
    missing: Literal["drop", "keep"] = "drop"
    """What happens to a record that does not have the field, or has null in it."""

    @property
    def range(self) -> Range | None:
        return None if self.min is None and self.max is None else Range(min=self.min, max=self.max)

    def __str__(self) -> str:
        parts = [str(self.range)] if self.range is not None else []
        parts += [f"one of {', '.join(map(shown, self.any_of))}"] if self.any_of else []
        parts += [f"none of {', '.join(map(shown, self.none_of))}"] if self.none_of else []
        return " and ".join(parts) + (" or missing" if self.missing == "keep" else "")


@config_class
class Filter:
    answer_chars: Range | None = None
    """Characters of each trained answer."""
    answer_words: Range | None = None
    """Words of each trained answer, separated by whitespace; count characters in languages without spaces."""
    rounds: Range | None = None
    """Answers of the record, one for each round."""
    images: Range | None = None
    """Images of the record."""
    fields: dict[str, FieldRule] = field(default_factory=dict)
    """Rules for keys of the record itself: ratings, its source, a language tag."""
    language: tuple[str, ...] = ()
    """Languages to keep, as codes such as en; und keeps texts that are too short to say. Needs the extra `language`."""
    image_width: Range | None = None
    """Width of each image in pixels, as it is before resizing."""
    image_height: Range | None = None
    """Height of each image in pixels, as it is before resizing."""
    image_shorter_side: Range | None = None
    """The shorter side of each image in pixels, as it is before resizing."""
    aspect_ratio: Range | None = None
    """Longer side / shorter side of each image: 1 is a square."""

    @property
    def image_rules(self) -> ImageRules:
        """(name, range) of the rules that need the images, in order."""
        return tuple((name, bounds) for name in _OF_IMAGES if (bounds := getattr(self, name)) is not None)

    @property
    def has_record_rules(self) -> bool:
        """Whether a rule can be decided without opening an image."""
        return bool(self.fields or self.language or any(getattr(self, name) is not None for name in _OF_TEXTS))

    def lines(self) -> Iterator[str]:
        """The rules, each in a few words; those over images last."""
        for name in _OF_TEXTS:
            if (bounds := getattr(self, name)) is not None:
                yield f"{name} {bounds}"
        yield from (f"fields.{name} {rule}" for name, rule in self.fields.items())
        if self.language:
            yield f"language {', '.join(self.language)}"
        yield from (f"{name} {bounds} (decided in a build)" for name, bounds in self.image_rules)

    def record_key(self) -> dict[str, Any]:
        """Everything that the rules over records depend on."""
        key = {name: value for name, value in dataclasses.asdict(self).items() if name not in _OF_IMAGES}
        return {**key, "detector": language.detector()} if self.language else key


def shown(value: Scalar) -> str:
    """A value as people write it in JSON, if it is short."""
    return f'"{value[:60]}"' if isinstance(value, str) else str(value).lower()


ImageRules = tuple[tuple[str, Range], ...]

_OF_TEXTS = ("answer_chars", "answer_words", "rounds", "images")
_OF_IMAGES = ("image_width", "image_height", "image_shorter_side", "aspect_ratio")


@dataclass(frozen=True, slots=True)
class Broken:
    """The rule that drops a record, by its path below `filter`, and what was got and expected."""

    rule: str
    detail: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.detail}"


def filter_problems(rules: Filter, where: str) -> Iterator[str]:
    """What is wrong between the keys of a filter, one line each; `where`: its path."""
    for name in (*_OF_TEXTS, *_OF_IMAGES):
        bounds = getattr(rules, name)
        if bounds is not None:
            yield from _range_problems(bounds, f"{where}.{name}")
    for name, rule in rules.fields.items():
        path = f"{where}.fields.{name}"
        if rule.range is not None:
            yield from _range_problems(rule.range, path)
        elif not rule.any_of and not rule.none_of:
            yield f"{path}: got no condition; expected min, max, any_of or none_of"
    if rules.language:
        yield from language.code_problems(rules.language, f"{where}.language")


def _range_problems(bounds: Range, path: str) -> Iterator[str]:
    if bounds.min is None and bounds.max is None:
        yield f"{path}: got no bound; expected min, max or both"
    elif bounds.min is not None and bounds.max is not None and bounds.min > bounds.max:
        yield f"{path}: got min {bounds.min:g} and max {bounds.max:g}; expected a min that is not above max"
