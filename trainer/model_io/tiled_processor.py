"""The files with which transformers' AutoProcessor cuts images into the tiles of training, in folders without our code.

InternVL's processor does it, for a LLaVA as well: it repeats the placeholder for each tile, and a LLaVA takes tiles as
images. LLaVA-NeXT's and LLaVA-OneVision's processors do not: they add a newline embedding to each row of patches, and
their models drop the patches of the padding.

Rules
- The tokens that it writes around an image are empty, so that the ids are those of training. It reads them from the
  tokenizer's configuration.
- It has to have a name for videos. Ours is a string that no text has, of which no id is trained.
- It cuts every image into at most `max_patches` tiles. Where a build has another number for samples of several images,
  the caller passes it, see trainer.model_io.processor.differences.
"""

from __future__ import annotations

from typing import Any

from dst import IMAGE_TOKEN
from shards.images.geometry import Geometry
from trainer.model.encoders.registry import Encoder
from trainer.model_io.processor import PREPROCESSOR, PROCESSOR, RESAMPLE, is_tiled

VIDEO_PREPROCESSOR = "video_preprocessor_config.json"

NO_VIDEO = "<|dsvl_has_no_videos|>"

TOKENS: dict[str, Any] = {
    "extra_special_tokens": {
        "start_image_token": "",
        "end_image_token": "",
        "context_image_token": IMAGE_TOKEN,
        "video_token": NO_VIDEO,
    }
}
"""Keys of tokenizer_config.json; InternVL's processor reads these tokens, in the form of transformers 4 and 5"""


def tile_refusals(geometry: Geometry) -> list[str]:
    """Why no processor of transformers cuts images as in training, a clause each; empty if one does."""
    if not is_tiled(geometry):
        return []
    reasons = []
    if geometry.fit != "squash":
        reasons.append(f"its images are cut into tiles with fit: {geometry.fit}, transformers does it with squash")
    if geometry.grid != "ratio":
        reasons.append(f"its images are cut into tiles with grid: {geometry.grid}, transformers does it with ratio")
    return reasons


def tiled_processor_files(geometry: Geometry, encoder: Encoder, image_tokens: int) -> dict[str, dict[str, Any]]:
    """Name -> content, without the tokenizer's. image_tokens: of a tile."""
    square = {"height": geometry.size, "width": geometry.size}
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square,
        "resample": RESAMPLE[geometry.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }
    return {
        PREPROCESSOR: {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": geometry.most_tiles(1),
            **pixels,
        },
        VIDEO_PREPROCESSOR: {"video_processor_type": "InternVLVideoProcessor", **pixels},
        PROCESSOR: {"processor_class": "InternVLProcessor", "image_seq_length": image_tokens},
    }
