"""Rules over the sizes of images: decided when a shard is compiled, since images are opened only there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from preprocess.filters.rules import Broken, ImageRules

Size = tuple[int, int]

_MEASURES: Mapping[str, Callable[[Size], float]] = {
    "image_width": lambda size: size[0],
    "image_height": lambda size: size[1],
    "image_shorter_side": min,
    "aspect_ratio": lambda size: max(size) / min(size),
}


def broken_image_rule(rules: ImageRules, sizes: Sequence[Size]) -> Broken | None:
    """The first rule that does not hold for one of the images. sizes: width and height of each, in pixels."""
    for name, bounds in rules:
        for number, size in enumerate(sizes, start=1):
            value = _MEASURES[name](size)
            if not bounds.holds(value):
                return Broken(name, f"image {number} is {size[0]}x{size[1]}, {value:.4g}; expected {bounds}")
    return None
