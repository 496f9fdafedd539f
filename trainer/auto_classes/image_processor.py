"""Images as training prepared them, as an image processor of transformers, for exports that are not LLaVA folders.

The rule: pixels are those of shards.images, to the bit, whatever backend is asked for. EXIF orientation is applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images

from shards.images.decode import image_tiles
from shards.images.geometry import Geometry
from shards.images.pixels import to_rgb
from shards.images.tiles import choose_grid
from shards.typed_json import from_json


class DsvlImageProcessor(BaseImageProcessor):
    """geometry: the build's, as JSON. image_mean, image_std: the encoder's, of red, green and blue."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - declared so in the base class

    def __init__(
        self, geometry: Mapping[str, Any], image_mean: Sequence[float], image_std: Sequence[float], **options: Any
    ) -> None:
        super().__init__(**options)
        self.geometry, self.image_mean, self.image_std = dict(geometry), list(image_mean), list(image_std)
        self.crop_size = {"height": geometry["size"], "width": geometry["size"]}  # LLaVA's processor counts with it

    def preprocess(self, images: Any, return_tensors: str | None = None, **options: Any) -> BatchFeature:
        """pixel_values: float32 [N, 3, S, S], of one image or of lists of them: Pillow's, paths, URLs, or uint8 arrays.

        With tiles, N counts them, and `num_patches` says how many each image has; a list of several images is a prompt
        with several. Other options of image processors have no effect, since training fixed them. Raises ValueError for
        arrays that are not uint8, ImageError for an image that training would have rejected.
        """
        geometry = from_json(Geometry, self.geometry, "geometry")
        fetched: Any = self.fetch_images(images)
        nested = isinstance(fetched, list | tuple) and any(isinstance(each, list | tuple) for each in fetched)
        prompts: list[Any] = [make_flat_list_of_images(each) for each in (fetched if nested else [fetched])]
        tiles = [_tiles(image, geometry, len(prompt)) for prompt in prompts for image in prompt]
        means, stds = (np.array(values, np.float32).reshape(3, 1, 1) for values in (self.image_mean, self.image_std))
        pixels = [(tile.astype(np.float32) - means * 255) / (stds * 255) for image in tiles for tile in image]
        counts = {"num_patches": [len(image) for image in tiles]} if geometry.tiles is not None else {}
        return BatchFeature(data={"pixel_values": pixels, **counts}, tensor_type=return_tensors)


def _tiles(image: Any, geometry: Geometry, num_images: int) -> npt.NDArray[np.uint8]:
    """uint8 [tiles, 3, S, S]; num_images: of the prompt."""
    if not isinstance(image, Image.Image):
        image = _from_array(np.asarray(image))
    upright = ImageOps.exif_transpose(image)
    grid = choose_grid(*upright.size, geometry, geometry.most_tiles(num_images))
    return image_tiles(to_rgb(upright), geometry, grid).transpose(0, 3, 1, 2)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """Of [height, width, 3] or [3, height, width]."""
    if array.dtype != np.uint8:
        raise ValueError(f"got an image of {array.dtype}; expected uint8, or an image of Pillow")
    return Image.fromarray(array.transpose(1, 2, 0) if array.shape[0] == 3 and array.shape[-1] != 3 else array)
