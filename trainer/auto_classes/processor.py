"""Texts and images as training prepared them, for exports that are not folders of transformers alone, with tiles.

The rule: a placeholder becomes as many tokens as its image's tiles have, and images of a prompt get the tiles that
those of a sample got. `dsvl-train chat` also gives them fewer where a conversation would be longer than the model
reads; this processor does not.
"""

from __future__ import annotations

from typing import Any

from transformers.image_utils import make_flat_list_of_images
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.processing_utils import MultiModalData

from shards.images.geometry import Geometry
from shards.images.tiles import choose_grid
from shards.typed_json import from_json


class DsvlProcessor(LlavaProcessor):
    """LLaVA's, with trainer.auto_classes.image_processor. `num_additional_image_tokens` is one less than a tile's."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """As LLaVA's. images: flat, or in a list for each text. Raises ValueError if texts have not as many places."""
        if images is not None and text is not None:
            texts = [text] if isinstance(text, str) else text
            flat: Any = make_flat_list_of_images(self.image_processor.fetch_images(images))
            rest = list(flat)
            counts = [each.count(self.image_token) for each in texts]
            if sum(counts) == len(rest):  # else LLaVA's processor says so
                images = [[rest.pop(0) for _ in range(count)] for count in counts if count]
        return super().__call__(images=images, text=text, **options)

    def replace_image_token(self, image_inputs: Any, image_idx: int, **options: Any) -> str:
        """The placeholder, as often as an image has tokens."""
        tiles = int(image_inputs["num_patches"][image_idx])
        placeholder: str = self.image_token
        return placeholder * (tiles * (1 + int(self.num_additional_image_tokens)))

    @property
    def unused_input_names(self) -> list[str]:
        return ["num_patches"]

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **options: Any) -> Any:
        """For image sizes, each height and width, of one prompt."""
        if image_sizes is None:
            return MultiModalData()
        geometry = from_json(Geometry, self.image_processor.geometry, "geometry")
        most = geometry.most_tiles(len(image_sizes))
        tiles = [choose_grid(width, height, geometry, most).tiles for height, width in image_sizes]
        tokens = 1 + self.num_additional_image_tokens
        return MultiModalData(num_image_tokens=[tokens * number for number in tiles], num_image_patches=tiles)
