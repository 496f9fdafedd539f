"""Exports of models that see images in tiles: what our own chat makes of a prompt, and what transformers does."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import trainer
from shards import Build
from shards.loader import normalize
from tests.support import exports
from tests.support.model_batches import unlabelled
from trainer.inference.conversation import Exchange, messages_of, prompt_of

ONE, TWO, SMALL = ((150, 41),), ((31, 90), (150, 61)), ((20, 33),)
"""Sizes of the images of a prompt, width and height"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """ids: [1, T], expanded. pixels: float32 [tiles, 3, S, S], normalised. logits: [1, T, V]."""

    ids: torch.Tensor
    pixels: torch.Tensor
    logits: torch.Tensor


def drawn(sizes: Sequence[tuple[int, int]]) -> list[Image.Image]:
    """Noise."""
    random = np.random.default_rng(5)
    return [
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert("RGB")
        for width, height in sizes
    ]


def exchange_of(images: Sequence[Image.Image], build: Build) -> Exchange:
    return Exchange(question="Which is older?", images=exports.loaded_images(images, build))


def as_chat_sees(folder: Path, images: Sequence[Image.Image], build: Build) -> Seen:
    """The folder opened by trainer.load, as chat asks it."""
    loaded = trainer.load(folder)
    prompt = prompt_of([exchange_of(images, build)], loaded, end_id=0)
    slots = torch.tensor([[0, int(start)] for start in prompt.slots])
    ids = torch.tensor(prompt.ids)[None]
    with torch.no_grad():
        logits = loaded.model.logits(unlabelled(ids, prompt.images, slots))
    return Seen(
        ids=ids,
        pixels=normalize(prompt.images, loaded.model.encoder.mean, loaded.model.encoder.std, torch.float32),
        logits=logits,
    )


def processor_of(folder: Path) -> Any:
    """As the model card says."""
    transformers: Any = importlib.import_module("transformers")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return processor


def as_transformers_sees(folder: Path, images: Sequence[Image.Image], build: Build, model: Any, **options: Any) -> Seen:
    """The folder's processor, and the model of the folder. options: of the processor."""
    processor = processor_of(folder)
    text = processor.apply_chat_template(messages_of([exchange_of(images, build)]), add_generation_prompt=True)
    inputs = processor(text=text, images=list(images), return_tensors="pt", **options)
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    with torch.no_grad():
        logits = model(**inputs).logits
    return Seen(ids=inputs["input_ids"], pixels=inputs["pixel_values"], logits=logits)


def check_same(got: Seen, expected: Seen) -> None:
    assert torch.equal(got.ids, expected.ids)
    assert (got.pixels - expected.pixels).abs().max() < 1e-5
    assert (got.logits - expected.logits).abs().max() < 1e-4
