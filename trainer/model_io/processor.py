"""The files with which transformers' AutoProcessor gives the ids and pixels of training.

Of a standard folder of LLaVA or InternVL, the image processor is one that transformers has without dsvl; for tiles see
trainer.model_io.tiled_processor. Of any other export it is our own, and its pixels are those of training.

The rule: sizes, colours and filters are the build's, mean and std the encoder's. The PIL backend then gives exactly the
pixels of training. The torchvision backend differs where it resizes: it rounds differently, and with Lanczos, which
torchvision has since 0.27 and only on the CPU, it differs more. No key of these files selects the backend, so the model
card says how to. LLaVA's processor pads with the encoder's mean; where the build has another `pad_colour`, borders
differ, see `differences`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dst import IMAGE_TOKEN
from shards.images.geometry import Geometry
from shards.images.pixels import PAD_COLOURS
from shards.typed_json import to_json
from trainer.model.encoders.registry import Encoder

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"

EXACT = "Pixels are those of training, whatever backend is asked for. EXIF orientation is applied."
"""Of trainer.auto_classes.image_processor; for LLaVA folders see `differences`"""

IMAGE_PROCESSOR_CLASS, PROCESSOR_CLASS = "DsvlImageProcessor", "DsvlProcessor"
"""In trainer.auto_classes, of its image_processor and processor"""

RESAMPLE = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


def preprocessor_config(geometry: Geometry, encoder: Encoder) -> dict[str, Any]:
    """preprocessor_config.json: from an upright image to the encoder's input."""
    side = geometry.size
    square = {"height": side, "width": side}
    return {
        "image_processor_type": "LlavaImageProcessor" if geometry.fit == "pad" else "CLIPImageProcessor",
        "do_convert_rgb": True,
        **({"do_pad": True} if geometry.fit == "pad" else {}),
        "do_resize": True,
        "size": {"shortest_edge": side} if geometry.fit == "crop" else square,
        "resample": RESAMPLE[geometry.interpolation],
        "do_center_crop": geometry.fit == "crop",
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }


def own_preprocessor_config(geometry: Geometry, encoder: Encoder) -> dict[str, Any]:
    """preprocessor_config.json for trainer.auto_classes.image_processor, whose pixels are those of training."""
    return {
        "image_processor_type": IMAGE_PROCESSOR_CLASS,
        "geometry": to_json(geometry),
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }


def processor_config(expansion: Mapping[str, Any], processor_class: str = "LlavaProcessor") -> dict[str, Any]:
    """processor_config.json. expansion: the settings that determine the tokens per image."""
    return {"processor_class": processor_class, "image_token": IMAGE_TOKEN, **expansion}


def is_tiled(geometry: Geometry) -> bool:
    """Whether any image may have several tiles."""
    return max(geometry.most_tiles(1), geometry.most_tiles(2)) > 1


def plain_expansion(geometry: Geometry, image_tokens: int) -> dict[str, Any]:
    """For encoders and projectors whose tokens are not patches: one patch, all others additional tokens."""
    return {
        "patch_size": geometry.size,
        "num_additional_image_tokens": image_tokens - 1,
        "vision_feature_select_strategy": "full",
    }


def differences(geometry: Geometry, encoder: Encoder) -> list[str]:
    """Where the exported processor's pixels differ from those of training, a sentence each."""
    alone, several = geometry.most_tiles(1), geometry.most_tiles(2)
    notes = [
        "The processor ignores EXIF orientation: turn images upright first "
        "(`PIL.ImageOps.exif_transpose`), as training did."
    ]
    if geometry.fit == "pad":
        in_training = PAD_COLOURS[geometry.pad_colour]
        if (here := tuple(int(value * 255) for value in encoder.mean)) != in_training:
            notes.append(f"The padding colour is {here} here, the encoder's mean, and was {in_training} in training.")
    default = (
        "has no Lanczos filter of its own: it approximates it, or takes bicubic instead, depending on the "
        "torchvision version and the device, and pixels at hard edges differ visibly"
        if geometry.interpolation == "lanczos"
        else "rounds differently when it resizes, by up to 1/255"
    )
    if alone != several:
        notes.append(
            f"It cuts each image into at most {alone} tiles, as training did for one image. For several images in a "
            f"prompt pass `max_patches={several}` to it."
        )
    pil = "AutoImageProcessor" if is_tiled(geometry) else "AutoProcessor"
    notes.append(
        f'With `{pil}.from_pretrained(..., backend="pil")` the pixels are those of training; the default '
        f"backend {default}. Images of {geometry.size} x {geometry.size} pixels are not resized, so both backends "
        "agree."
    )
    return notes
