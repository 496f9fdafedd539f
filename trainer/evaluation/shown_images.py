"""What a held-out sample's images are shown as: themselves, another sample's, or nothing.

A model that looks at its images does worse with wrong ones. Rules: the choice depends on the build alone; other images
are of the same dataset and never among the sample's own; text stays as it is, so an image in the place of another has
as many tiles (those of the others, again and again if they are fewer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
import xxhash

from shards import Build
from shards.images.geometry import Geometry
from shards.images.tiles import Grid
from trainer.evaluation.held_out import SPLIT, decoded_images

Shown = Literal["right", "exchanged", "blank"]

WRONG: tuple[Shown, ...] = ("exchanged", "blank")


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A held-out sample as measurements need it. index: in the split; group: equal where the images are the same."""

    index: int
    dataset: str
    num_images: int
    group: int


class ShownImages:
    """The images of a build's held-out samples, right and wrong."""

    def __init__(self, build: Build, geometry: Geometry, mean: Sequence[float]) -> None:
        """mean: of the colours [0, 1] that the encoder subtracts, by channel; blank images have it. Reads the split."""
        self._build, self._geometry = build, geometry
        self._blank = torch.tensor([round(255 * value) for value in mean], dtype=torch.uint8).view(1, 3, 1, 1)
        self.samples: dict[str, ShownSample] = {}
        """By key"""
        images: list[frozenset[int]] = []
        for index in range(len(build[SPLIT])):
            dataset, sample = build[SPLIT].named(index)
            hashes = [xxhash.xxh3_64_intdigest(image) for image in sample.images]
            images.append(frozenset(hashes))
            group = xxhash.xxh3_64_intdigest(b"".join(value.to_bytes(8, "little") for value in hashes))
            self.samples[sample.key] = ShownSample(index, dataset, len(hashes), group)
        self._others = _others(list(self.samples.values()), images)

    def without_other(self) -> dict[str, int]:
        """Dataset -> its samples whose images cannot be exchanged, as all others show the same; if there are any."""
        counts: dict[str, int] = {}
        for sample in self.samples.values():
            if sample.num_images and self._others[sample.index] is None:
                counts[sample.dataset] = counts.get(sample.dataset, 0) + 1
        return counts

    def is_measured(self, index: int) -> bool:
        """Whether a sample has images, and others to exchange them for."""
        return self._others.get(index) is not None

    def pixels(self, shown: Shown, index: int, own: Sequence[memoryview], grids: Sequence[Grid]) -> list[torch.Tensor]:
        """The tiles of a sample's first images, uint8 [tiles, 3, S, S] each. own: their files.

        Raises TrainError for an image that cannot be decoded, ShardError for one that cannot be read.
        """
        side = self._geometry.size
        if shown == "blank":
            return [self._blank.expand(grid.tiles, 3, side, side) for grid in grids]
        if shown == "right":
            return decoded_images(self._build, index, own, grids, self._geometry)
        other_index = self._others[index]
        assert other_index is not None, "is_measured says so"
        other = self._build[SPLIT][other_index]
        tiles = torch.cat(decoded_images(self._build, other_index, other.images, other.grids, self._geometry))
        numbers = torch.arange(sum(grid.tiles for grid in grids)) % len(tiles)
        return list(torch.split(tiles[numbers], [grid.tiles for grid in grids]))


def _others(samples: Sequence[ShownSample], images: Sequence[frozenset[int]]) -> dict[int, int | None]:
    """Index of a sample with images -> that of the one whose images it is shown; None if all show one of its own.

    Of a dataset's groups with the same number of images, each gets the images of the one half a round further; where
    that fails, of the next group of the dataset that shows none of its own.
    """
    groups: dict[str, dict[int, int]] = {}
    for sample in samples:
        if sample.num_images:
            groups.setdefault(sample.dataset, {}).setdefault(sample.group, sample.index)
    other_of: dict[tuple[str, int], int | None] = {}
    for dataset, firsts in groups.items():
        same_size: dict[int, list[int]] = {}
        for index in firsts.values():
            same_size.setdefault(samples[index].num_images, []).append(index)
        everyone = list(firsts.values())
        places = {index: place for place, index in enumerate(everyone)}
        for alike in same_size.values():
            for place, index in enumerate(alike):
                half = place + len(alike) // 2
                candidates = chain(_turned(alike, half), _turned(everyone, places[index]))
                other_of[dataset, samples[index].group] = next(
                    (other for other in candidates if not images[other] & images[index]), None
                )
    return {sample.index: other_of[sample.dataset, sample.group] for sample in samples if sample.num_images}


def _turned(indices: Sequence[int], start: int) -> chain[int]:
    start %= len(indices)
    return chain(indices[start:], indices[:start])
