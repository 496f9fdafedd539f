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

from shards.images.geometry import Geometry
from shards.images.pixels import fit, to_rgb
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

        Other options of image processors have no effect, since training fixed them. Raises ValueError for arrays that
        are not uint8, ImageError for an image that training would have rejected.
        """
        geometry = from_json(Geometry, self.geometry, "geometry")
        flat: Any = make_flat_list_of_images(self.fetch_images(images))
        squares = [_square(image, geometry) for image in flat]
        means, stds = (np.array(values, np.float32).reshape(3, 1, 1) for values in (self.image_mean, self.image_std))
        pixels = [(square.astype(np.float32) - means * 255) / (stds * 255) for square in squares]
        return BatchFeature(data={"pixel_values": pixels}, tensor_type=return_tensors)


def _square(image: Any, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """uint8 [3, S, S]"""
    if not isinstance(image, Image.Image):
        image = _from_array(np.asarray(image))
    upright = ImageOps.exif_transpose(image)
    return np.asarray(fit(to_rgb(upright), geometry)).transpose(2, 0, 1)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    """Of [height, width, 3] or [3, height, width]."""
    if array.dtype != np.uint8:
        raise ValueError(f"got an image of {array.dtype}; expected uint8, or an image of Pillow")
    return Image.fromarray(array.transpose(1, 2, 0) if array.shape[0] == 3 and array.shape[-1] != 3 else array)
