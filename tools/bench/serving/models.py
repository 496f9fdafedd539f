"""Models with random weights that a server is measured with, and questions for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from dst import ChatTokenizer, load_template, load_tokenizer
from shards.format.manifest import BuildFacts, BuildLimits, TokenizerInfo
from shards.images.geometry import Geometry
from tools.bench.data import ROOT
from trainer.config.model import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import Generator
from trainer.model.build_model import build_model
from trainer.model.decoder import PRESETS
from trainer.model.vision_chat import VisionChatModel

SMOLLM2_135M: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MID: dict[str, Any] = {
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_hidden_layers": 8,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
}
"""10 million weights next to the embeddings"""
DINOV2_SMALL: dict[str, Any] = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 336,
    "patch_size": 14,
}
SIZES: dict[str, tuple[dict[str, Any], EncoderConfig]] = {
    "tiny": (
        PRESETS["tiny_llama"],
        EncoderConfig(kind="tiny", config={"image_size": 336, "patch_size": 14}),
    ),
    "mid": (
        {**PRESETS["tiny_llama"], **MID},
        EncoderConfig(kind="tiny", config={"image_size": 336, "patch_size": 14}),
    ),
    "135M": (SMOLLM2_135M, EncoderConfig(kind="hf", config=DINOV2_SMALL)),
}
"""Name -> decoder and encoder; all have 576 tokens an image"""
IMAGE_TOKENS = 576
QUESTION_TOKENS = 24
SIDE = 336
GEOMETRY = Geometry(size=SIDE, fit="crop", pad_colour="clip", interpolation="bicubic", max_pixels=10**8)


@dataclass(frozen=True, slots=True)
class Model:
    """A generator with all that prompts are made from, and questions for it."""

    generator: Generator
    chat_tokenizer: ChatTokenizer
    geometry: Geometry
    max_tiles: int | None = None

    @property
    def model(self) -> VisionChatModel:
        return self.generator.model

    def prompt(self, question: int, *, image: int, beginning: int = 0) -> Prompt:
        """Random words before an image and behind it; each number stands for other words or pixels."""
        image_id = self.generator.model.image_id
        before, behind = (
            np.random.Generator(np.random.PCG64(seed)).integers(300, 1000, length)
            for seed, length in (((beginning, 1), 4), ((question, 2), QUESTION_TOKENS))
        )
        pixels = torch.Generator().manual_seed(image)
        return Prompt(
            ids=np.concatenate([before, np.full(IMAGE_TOKENS, image_id), behind]).astype(np.int64),
            images=torch.randint(256, (1, 3, SIDE, SIDE), dtype=torch.uint8, generator=pixels),
            slots=(4,),
            end_id=self.generator.end_id,
        )


@functools.cache
def made(size: str, attention: Any) -> Model:
    """A model with random weights."""
    decoder, encoder = SIZES[size]
    chat = ChatTokenizer(load_template("vicuna"), load_tokenizer(ROOT / "examples/tokenizer"))
    config = ModelConfig(
        encoder=encoder,
        projector=ProjectorConfig(kind="mlp"),
        decoder=DecoderConfig(config=decoder),
        attention=attention,
    )
    facts = BuildFacts(
        hash="0" * 64,
        template="vicuna",
        image=GEOMETRY,
        image_tokens=IMAGE_TOKENS,
        limits=BuildLimits(max_length=4096, max_images=8),
        tokenizer=TokenizerInfo(
            fingerprint="0" * 64,
            vocabulary_size=chat.tokenizer.vocabulary_size,
            image_id=chat.tokenizer.image_id,
            bos_token="<s>",
            eos_token="</s>",
        ),
        datasets={},
    )
    torch.manual_seed(0)
    model: VisionChatModel = build_model(config, facts).requires_grad_(False)
    return Model(Generator(model, chat), chat, GEOMETRY)
