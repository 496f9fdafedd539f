"""Placeholders of images, one token each in a sample, expanded to the positions that an image takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Expansion:
    """How ids [S] become [T]: each placeholder `image_tokens` times, every other token once."""

    is_image: npt.NDArray[np.bool_]
    """[S]: which tokens are placeholders"""
    repeats: npt.NDArray[np.int64]
    """[S]: positions that each token takes"""

    @property
    def image_starts(self) -> npt.NDArray[np.int64]:
        """[N]: the first position of each image."""
        starts: npt.NDArray[np.int64] = (np.cumsum(self.repeats) - self.repeats)[self.is_image]
        return starts

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values [S] of the tokens as values [T] of the positions."""
        return np.repeat(values, self.repeats)


def expand(ids: npt.NDArray[Any], *, image_id: int, image_tokens: int) -> Expansion:
    """The expansion of a sample's or a prompt's ids [S]."""
    is_image = ids == image_id
    return Expansion(is_image, np.where(is_image, image_tokens, 1))
