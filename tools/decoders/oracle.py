"""What a decoder's losses and gradients are by definition: in float64, one sample after the other, by transformers.

Causal attention is the library's own model, called with `input_ids` alone where a sample has no image, else with
`inputs_embeds` alone: without mask, positions and cache. MMCA is the same where there is no image. With images it is
the library's model with its definition, row after row (tests.support.oracles_attention), as the attention function.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional

from tests.support import oracles_attention
from tests.support.model_batches import IMAGE
from trainer.compat.transformers import new_model, register_attention
from trainer.model.vision_chat import VisionChatModel

DEFINED_MMCA = "defined_mmca"


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 what models cast to float32 whatever their type is, such as norms and routers."""
    with ExitStack() as stack:
        for owner, name in (
            (torch.Tensor, "float"),
            (torch.Tensor, "to"),
            (torch.Tensor, "softmax"),
            (torch, "softmax"),
            (functional, "softmax"),
        ):
            stack.enter_context(patch.object(owner, name, _wide(getattr(owner, name))))
        yield


def _wide(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if tensor.dtype != torch.float64:
            return function(tensor, *arguments, **options)
        if function.__name__ == "float":
            return tensor
        arguments = tuple(torch.float64 if each is torch.float32 else each for each in arguments)
        options = {key: torch.float64 if each is torch.float32 else each for key, each in options.items()}
        return function(tensor, *arguments, **options)

    return call


class Oracle(nn.Module):
    """A copy of a model's parts, which computes the loss of samples by definition."""

    def __init__(self, model: VisionChatModel) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.encoder, self.projector = copy.deepcopy(model.encoder), copy.deepcopy(model.projector)
        ours: Any = model.decoder
        config = copy.deepcopy(ours.config)
        self.decoder: Any = new_model(AutoModelForCausalLM, config, attn_implementation="eager")
        self._dtype = ours.get_input_embeddings().weight.dtype
        self.decoder.to(self._dtype).load_state_dict(ours.state_dict())
        self.train(model.training)
        self.attention = model.attention
        self._is_image = torch.zeros(1, 0, dtype=torch.bool)
        register_attention(DEFINED_MMCA, self._attend, _no_mask)

    def forward(self, samples: list[list[int]], images: torch.Tensor) -> torch.Tensor:
        """The sum of losses. samples: token ids, an image being `IMAGE_TOKENS` of `IMAGE`; images: of all, in order."""
        features = iter(self._features(images).flatten(0, 1))
        losses = [self._loss(torch.tensor([sample]), features) for sample in samples]
        return torch.stack(losses).sum()

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        from shards.loader import normalize

        pixels = normalize(images, self.encoder.mean, self.encoder.std, self._dtype)
        features: torch.Tensor = self.projector(self.encoder(pixels))
        return features

    def _loss(self, ids: torch.Tensor, features: Any) -> torch.Tensor:
        is_image = ids == IMAGE
        if is_image.any():
            table = self.decoder.get_input_embeddings()
            embedded = [next(features) if token == IMAGE else table(token) for token in ids[0]]
            arguments = {"inputs_embeds": torch.stack(embedded)[None]}
        else:
            arguments = {"input_ids": ids}
        is_defined = self.attention == "mmca" and bool(is_image.any())
        self.decoder.set_attn_implementation(DEFINED_MMCA if is_defined else "eager")
        self._is_image = is_image
        logits = self.decoder(**arguments, use_cache=False).logits
        targets = ids.masked_fill(is_image, -100)[:, 1:]
        loss: torch.Tensor = functional.cross_entropy(logits[0, :-1].float(), targets[0], reduction="sum")
        return loss

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: object,
        scaling: float | None = None,
        **others: object,
    ) -> tuple[torch.Tensor, None]:
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        segment_ids = torch.ones_like(self._is_image, dtype=torch.int64)
        return oracles_attention.mmca(query, key, value, self._is_image, segment_ids, scaling).to(value.dtype), None


def _no_mask(**arguments: object) -> None:
    return None
