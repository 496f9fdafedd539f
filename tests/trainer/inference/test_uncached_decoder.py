"""Chat and evaluation with decoders of every kind give the logits of whole sequences, by a cache only where it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

import torch

from tests.support import model_batches
from tests.support.model_batches import CONFIG, IMAGE, IMAGE_TOKENS, facts, random_images, unlabelled
from tools.decoders.tiny import tiny_config
from trainer.config.model import DecoderConfig
from trainer.inference.cached_decoder import CachedDecoder, Prompt
from trainer.inference.uncached_decoder import UncachedDecoder, cache_is_right
from trainer.model.build_model import build_model
from trainer.model.vision_chat import VisionChatModel

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
CPU = torch.device("cpu")
IMAGES = random_images(1)
WITH_IMAGE = [1, *[IMAGE] * IMAGE_TOKENS, 6, 7]
TEXT = [12, 13, 14]


def model_of(model_type: str) -> VisionChatModel:
    decoder = DecoderConfig(config=tiny_config(model_type), attn_implementation="eager")
    model = build_model(replace(CONFIG, decoder=decoder), facts()).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def whole(model: VisionChatModel, ids: list[int]) -> torch.Tensor:
    """The logits after a sequence, computed as in training."""
    images = IMAGES if IMAGE in ids else IMAGES[:0]
    slots = torch.tensor([[0, 1]]) if IMAGE in ids else torch.zeros(0, 2, dtype=torch.int64)
    return model.logits(unlabelled(torch.tensor([ids]), images, slots))[0, -1]


def prompt(ids: list[int]) -> Prompt:
    return Prompt(
        ids=np.array(ids), images=IMAGES if IMAGE in ids else IMAGES[:0], slots=(1,) if IMAGE in ids else (), end_id=0
    )


@pytest.mark.parametrize(
    ("model_type", "cached"),
    [("llama", True), ("qwen3_next", True), ("bloom", True), ("mamba", False), ("git", False), ("minimax", False)],
)
def test_next_tokens_are_those_of_whole_sequences(model_type: str, cached: bool) -> None:
    model = model_of(model_type)
    assert cache_is_right(model, CPU) == cached
    decoder = (CachedDecoder if cached else UncachedDecoder)(model, 2, CPU)
    for tokens, logits in (
        ([], decoder.read_padded([prompt(WITH_IMAGE), prompt(TEXT)])),
        ([3], decoder.read_tokens([3, 3], torch.tensor([[len(WITH_IMAGE)], [len(TEXT)]]))),
    ):
        for row, ids in enumerate((WITH_IMAGE, TEXT)):
            torch.testing.assert_close(logits[row], whole(model, ids + tokens), rtol=1e-3, atol=1e-3)


def test_forgotten_positions_make_no_difference_without_a_cache() -> None:
    model = model_of("mamba")
    decoder = UncachedDecoder(model, 1, CPU)
    decoder.read_padded([prompt(WITH_IMAGE)])
    assert decoder.crop(1)
    logits = decoder.read_padded([prompt([8, 9])], first_position=len(WITH_IMAGE) - 1)
    torch.testing.assert_close(logits[0], whole(model, [*WITH_IMAGE[:-1], 8, 9]), rtol=1e-3, atol=1e-3)
