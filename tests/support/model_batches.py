"""Tiny models and hand-made batches for the tests of the model: samples laid out in sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from shards.format.manifest import BuildFacts
from shards.loader.fields import IGNORE, BatchFields
from tests.support.manifests import build_facts
from trainer.config.model import DecoderConfig, EncoderConfig, ModelConfig, ProjectorConfig
from trainer.model.build_model import build_model
from trainer.model.vision_chat import VisionChatModel

VOCABULARY = 100
IMAGE = VOCABULARY - 1
SIDE = 28
IMAGE_TOKENS = 4
ENCODER = EncoderConfig(kind="tiny", config={"image_size": SIDE, "patch_size": 14, "width": 16, "layers": 3})
CONFIG = ModelConfig(
    encoder=ENCODER,
    projector=ProjectorConfig(kind="mlp"),
    decoder=DecoderConfig(preset="tiny_llama"),
    attention="causal",
)
GPT_NEO = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}
"""A decoder with attention of its own"""
GEMMA2 = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
"""A decoder with soft caps"""
DOGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""A decoder with a trained attention mask"""
IMAGE_IDS = [IMAGE] * IMAGE_TOKENS
SAMPLES = [  # one image, none, two
    [1, *IMAGE_IDS, 5, 6, 7, 8],
    [9, 10, 11],
    [3, *IMAGE_IDS, 4, *IMAGE_IDS, 12, 13],
]


def facts(*, image_size: int = SIDE, image_tokens: int = IMAGE_TOKENS, max_length: int = 512) -> BuildFacts:
    """What the model reads of a build."""
    return build_facts(
        image_size=image_size,
        image_tokens=image_tokens,
        max_length=max_length,
        vocabulary_size=VOCABULARY,
        image_id=IMAGE,
    )


def make(config: ModelConfig = CONFIG, **parts: Any) -> VisionChatModel:
    """A random model in float64, in evaluation, its weights large enough for a mistake to show."""
    model = build_model(replace(config, **parts), facts(), dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def random_images(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def layout(sequences: Sequence[Sequence[list[int]]], length: int | None = None) -> dict[str, torch.Tensor]:
    """Batches as the model takes them, without images; every text token but a sample's first is trained on."""
    length = length or max(sum(map(len, sequence)) for sequence in sequences)
    shape = (len(sequences), length)
    ids, labels, positions = torch.zeros(shape).long(), torch.full(shape, -100), torch.zeros(shape).long()
    segments = torch.zeros(shape, dtype=torch.int32)
    slots: list[tuple[int, int]] = []
    for number, sequence in enumerate(sequences):
        start = 0
        for segment, sample in enumerate(sequence, start=1):
            end = start + len(sample)
            tokens = torch.tensor(sample)
            ids[number, start:end] = tokens
            labels[number, start + 1 : end] = torch.where(tokens == IMAGE, -100, tokens)[1:]
            positions[number, start:end] = torch.arange(len(sample))
            segments[number, start:end] = segment
            slot = 0
            while IMAGE in sample[slot:]:
                slot = sample.index(IMAGE, slot)
                slots.append((number, start + slot))
                slot += IMAGE_TOKENS
            start = end
    return {
        "input_ids": ids,
        "labels": labels,
        "position_ids": positions,
        "segment_ids": segments,
        "branch_ids": torch.zeros_like(segments),
        "image_slots": torch.tensor(slots, dtype=torch.int64).view(-1, 2),
    }


def unlabelled(ids: torch.Tensor, images: torch.Tensor, slots: torch.Tensor) -> BatchFields[torch.Tensor]:
    """A sequence of one sample, ids [1, T], that nothing is trained on."""
    return BatchFields(
        input_ids=ids,
        labels=torch.full_like(ids, IGNORE),
        position_ids=torch.arange(ids.shape[1])[None],
        segment_ids=torch.ones_like(ids, dtype=torch.int32),
        branch_ids=torch.zeros_like(ids, dtype=torch.int32),
        images=images,
        image_slots=slots,
    )


def on_one_thread() -> Iterator[None]:
    """A fixture's body: tensors are tiny, and waiting for a second core takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
