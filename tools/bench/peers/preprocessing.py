"""From an image to the encoder's 336 pixels, in the ways that the peers' users do it, and leaner."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image

SIZE = 336

Preprocess = Callable[[Image.Image], torch.Tensor]


def _hugging_face(*names: str) -> Preprocess:
    """The CLIP processor of the first of these names that this release of transformers has; float [3, 336, 336]."""
    make_torchvision_importable()
    import transformers

    processor_class = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    processor = processor_class(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})

    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return preprocess


def _torchvision() -> Preprocess:
    """torchvision resizes and crops; uint8 [3, 336, 336], to be normalized on the GPU."""
    make_torchvision_importable()
    from torchvision.transforms.v2 import functional

    def preprocess(image: Image.Image) -> torch.Tensor:
        pixels = functional.pil_to_tensor(image)
        small = functional.resize(pixels, [SIZE], functional.InterpolationMode.BICUBIC, antialias=True)
        cropped: torch.Tensor = functional.center_crop(small, [SIZE, SIZE])
        return cropped

    return preprocess


def _nothing() -> Preprocess:
    def preprocess(image: Image.Image) -> torch.Tensor:
        raise AssertionError("the task names no preprocessing")

    return preprocess


PREPROCESS: dict[str, Callable[[], Preprocess]] = {
    "": _nothing,
    "hf": lambda: _hugging_face("CLIPImageProcessorFast", "CLIPImageProcessor"),
    "hf-pillow": lambda: _hugging_face("CLIPImageProcessorPil", "CLIPImageProcessor"),
    "torchvision": _torchvision,
}
"""Name -> what imports its library and gives the function."""


def make_torchvision_importable() -> None:
    """With a CPU-only torch, torchvision's compiled operators may not load, and then it refuses to be imported.

    Resizing uses none of them, so names without code behind them are enough.
    """
    if "torchvision" in sys.modules:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        spec = find_spec("torchvision")
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).with_name("_meta_registrations.py").read_text(encoding="utf-8")
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in set(re.findall(r'register_(?:fake\("torchvision::|meta\(")(\w+)"', text)):
            library.define(f"{name}() -> ()")
        _KEPT.append(library)


_KEPT: list[Any] = []  # definitions end with the object that made them
