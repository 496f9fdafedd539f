"""Tiny random chat models with the example tokenizer, and prompts for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

import dst
from shards.images.geometry import Geometry
from tests.support.manifests import build_facts
from tests.support.small_blends import TOKENIZER
from trainer.config.model import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import expand_images
from trainer.model.build_model import build_model
from trainer.model.vision_chat import VisionChatModel

SIDE = 32
IMAGE_TOKENS = 4
GEOMETRY = Geometry(size=SIDE, fit="crop", pad_colour="clip", interpolation="bicubic", max_pixels=10**8)
PRESETS = ("tiny_llama", "tiny_mistral", "tiny_qwen2", "tiny_qwen3", "tiny_smollm3")
Attention = Literal["mmca", "causal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What trainer.load gives: all that chat and eval need of a model."""

    model: VisionChatModel
    chat_tokenizer: dst.ChatTokenizer
    geometry: Geometry
    max_tiles: int | None = None


def model_config(preset: str = "tiny_llama", attention: Attention = "mmca", **sizes: Any) -> ModelConfig:
    """`sizes` are those of a decoder of the preset's kind."""
    from trainer.model.decoder import PRESETS as SIZES

    return ModelConfig(
        encoder=EncoderConfig(kind="tiny", config={"image_size": SIDE, "patch_size": 16}),
        projector=ProjectorConfig(kind="linear"),
        decoder=DecoderConfig(config={**SIZES[preset], **sizes}),
        attention=attention,
    )


def loaded(
    preset: str = "tiny_llama", attention: Attention = "mmca", *, template: str = "visualchat", **sizes: Any
) -> Loaded:
    """A model whose random weights are so large that what it says depends on what it is asked."""
    chat = dst.ChatTokenizer(dst.load_template(template), dst.load_tokenizer(TOKENIZER))
    facts = build_facts(
        image_size=SIDE,
        image_tokens=IMAGE_TOKENS,
        max_length=24,
        vocabulary_size=chat.tokenizer.vocabulary_size,
        image_id=chat.tokenizer.image_id,
    )
    model = build_model(model_config(preset, attention, **sizes), facts)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=random))
    return Loaded(model=model, chat_tokenizer=chat, geometry=GEOMETRY)


def prompt(record: Loaded, ids: list[int], *, seed: int = 0, end_id: int | None = None) -> Prompt:
    """Ids with single placeholders, and random images for them that depend on `seed` and their number alone."""
    image_id = record.chat_tokenizer.tokenizer.image_id
    expanded, slots = expand_images(np.array(ids), image_id, IMAGE_TOKENS)
    images = [
        torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed + number))
        for number in range(len(slots))
    ]
    return Prompt(
        ids=expanded,
        images=torch.stack(images) if images else torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8),
        slots=slots,
        end_id=record.chat_tokenizer.tokenizer.control["</s>"] if end_id is None else end_id,
    )


class Fed:
    """Counts the positions that go through the decoder, and the images that go through the encoder."""

    def __init__(self, record: Loaded) -> None:
        self.positions: list[int] = []
        self.images: list[int] = []
        self._hooks = [
            record.model.decoder.base_model.register_forward_pre_hook(
                lambda module, args, kwargs: self.positions.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
            ),
            record.model.encoder.register_forward_pre_hook(lambda module, args: self.images.append(len(args[0]))),
        ]

    def __enter__(self) -> Fed:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
