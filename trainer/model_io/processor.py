"""The files that make transformers' AutoProcessor give the ids and pixels that training saw.

The rule: sizes, colours and filters are the build's, mean and std the encoder's. Its PIL backend then gives the very
pixels. torchvision's differs where it has to resize: by a rounding, and by more with Lanczos, which torchvision has
since 0.27, on the CPU only. Which of the two it takes is its caller's to say: no key of these files can, so the model
card does. `pad` has no exact counterpart there: LLaVA's processor pads before it resizes and ours after, so edges
differ, see `differences`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dst import IMAGE_TOKEN
from shards.images.geometry import Geometry
from shards.images.pixels import PAD_COLOURS
from trainer.model.encoders.registry import Encoder

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

_RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def preprocessor_config(geometry: Geometry, encoder: Encoder) -> dict[str, Any]:
    """preprocessor_config.json: from a picture, turned upright before, to the encoder's input."""
    side = geometry.size
    square = {"height": side, "width": side}
    return {
        "image_processor_type": "LlavaImageProcessor" if geometry.fit == "pad" else "CLIPImageProcessor",
        "do_convert_rgb": True,
        **({"do_pad": True} if geometry.fit == "pad" else {}),
        "do_resize": True,
        "size": {"shortest_edge": side} if geometry.fit == "crop" else square,
        "resample": _RESAMPLE[geometry.interpolation],
        "do_center_crop": geometry.fit == "crop",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }


def processor_config(expansion: Mapping[str, Any]) -> dict[str, Any]:
    """processor_config.json; `expansion` says how many tokens an image takes."""
    return {"processor_class": "LlavaProcessor", "image_token": IMAGE_TOKEN, **expansion}


def plain_expansion(geometry: Geometry, image_tokens: int) -> dict[str, Any]:
    """For encoders and projectors whose tokens are no patches: one patch, and the rest additional."""
    return {
        "patch_size": geometry.size,
        "num_additional_image_tokens": image_tokens - 1,
        "vision_feature_select_strategy": "full",
    }


def differences(geometry: Geometry, encoder: Encoder) -> list[str]:
    """In what the exported processor's pixels are not those of training, a sentence each."""
    found = [
        "Pictures are taken as they are stored: turn them upright by their EXIF orientation first "
        "(`PIL.ImageOps.exif_transpose`), as training did."
    ]
    if geometry.fit == "pad":
        found.append(
            "Pictures that are not square are padded before they are resized here, and after it in training, so pixels "
            "near the padding differ; `trainer.load` has the exact preprocessing."
        )
        wanted = PAD_COLOURS[geometry.pad_colour]
        if (got := tuple(int(value * 255) for value in encoder.mean)) != wanted:
            found.append(f"The padding is {got} here, the encoder's mean, and was {wanted} in training.")
    else:
        default = (
            "has no Lanczos filter of its own: it approximates it, or takes bicubic instead, depending on the "
            "torchvision version and the device, and pixels at hard edges differ visibly"
            if geometry.interpolation == "lanczos"
            else "rounds differently when it resizes, by up to 1/255"
        )
        found.append(
            'With `AutoProcessor.from_pretrained(..., backend="pil")` the pixels are those of training; the default '
            f"backend {default}. Pictures of {geometry.size} x {geometry.size} pixels are not resized, and both agree."
        )
    return found
