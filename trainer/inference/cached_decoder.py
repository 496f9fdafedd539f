"""A decoder with a KV cache: it reads prompts and single tokens, and returns the logits of the next token.

Rule: padding is never attended to, and positions count from a sequence's own first token. With MMCA every forward gets
a layout over all tokens that were read, since the cache does not record which of them are images.

Shapes: B sequences, T new tokens, K tokens in the cache and new ones, N images, S side in pixels, H hidden size, V
vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.layout import build_layout
from trainer.compat.transformers import cache_argument, crop_cache, new_cache
from trainer.model.decoder_logits import finish_logits
from trainer.model.vision_chat import VisionChatModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """The input that an answer follows; trainer.inference.conversation makes it from a conversation."""

    ids: npt.NDArray[np.int64]
    """[T]: as in training, all positions of an image hold the placeholder's id"""
    images: torch.Tensor
    """uint8 [N, 3, S, S], N tiles; an image without tiles is one"""
    slots: tuple[int, ...]
    """First position of each tile"""
    end_id: int
    """The token that ends the answer"""
    fewer_tiles: bool = False
    """Whether images got fewer tiles than they ask for, so that the prompt fits"""


class CachedDecoder:
    """The decoder and what it has read: the KV cache and, for each position in it, if it is an image or padding."""

    def __init__(self, model: VisionChatModel, rows: int, device: torch.device) -> None:
        self._model, self._device = model, device
        self._cache = new_cache(model.decoder.config)
        self._cache_argument = cache_argument()
        self._is_image_BK = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        self._mask_BK = torch.zeros(rows, 0, dtype=torch.int64, device=device)

    def read_padded(self, prompts: Sequence[Prompt], *, first_position: int = 0) -> torch.Tensor:
        """Read prompts of any length, padded on the left. Returns the logits [B, V] after each."""
        model = self._model
        longest = max(len(prompt.ids) for prompt in prompts)
        padding = int(model.image_id == 0)  # any id but the placeholder's
        ids = np.full((len(prompts), longest), padding, np.int64)
        mask, positions = np.zeros_like(ids), np.zeros_like(ids)
        slots = []
        for row, prompt in enumerate(prompts):
            start = longest - len(prompt.ids)
            ids[row, start:] = prompt.ids
            mask[row, start:] = 1
            positions[row, start:] = np.arange(first_position, first_position + len(prompt.ids))
            slots += [(row, start + slot) for slot in prompt.slots]
        ids_BT, mask_BT, positions_BT = (torch.from_numpy(x).to(self._device) for x in (ids, mask, positions))
        if slots:
            images = torch.cat([prompt.images for prompt in prompts]).to(self._device)
            embeddings_BTH = model.embed(ids_BT, images, torch.tensor(slots, device=self._device))
        else:
            embeddings_BTH = model.decoder.get_input_embeddings()(ids_BT)
        return self._feed(embeddings_BTH, ids_BT == model.image_id, mask_BT, positions_BT)

    def read_tokens(self, tokens: Sequence[int], positions_B1: torch.Tensor) -> torch.Tensor:
        """Read one text token per sequence. Returns the logits [B, V] after it."""
        ids_B1 = torch.tensor(tokens, device=self._device)[:, None]
        return self._feed(
            self._model.decoder.get_input_embeddings()(ids_B1),
            torch.zeros_like(ids_B1, dtype=torch.bool),
            torch.ones_like(ids_B1),
            positions_B1.to(self._device),
        )

    def crop(self, positions: int) -> bool:
        """Forget the last positions. False if the cache cannot do that, see trainer.compat.transformers.crop_cache."""
        if not positions:
            return True
        kept = self._is_image_BK.shape[1] - positions
        self._is_image_BK, self._mask_BK = self._is_image_BK[:, :kept], self._mask_BK[:, :kept]
        return crop_cache(self._cache, positions)

    def _feed(
        self,
        embeddings_BTH: torch.Tensor,
        is_image_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        positions_BT: torch.Tensor,
    ) -> torch.Tensor:
        model = self._model
        self._is_image_BK = torch.cat([self._is_image_BK, is_image_BT], dim=1)
        self._mask_BK = torch.cat([self._mask_BK, mask_BT], dim=1)
        arguments: dict[str, object] = {"attention_mask": self._mask_BK}
        if model.uses_layout:
            is_image_BK = model.attended_as_images(self._is_image_BK)
            layout = build_layout(is_image_BK, self._mask_BK, num_queries=embeddings_BTH.shape[1])
            arguments = {"attention_mask": None, "attention_layout": layout}
        hidden_BTH = model.decoder.base_model(
            inputs_embeds=embeddings_BTH,
            position_ids=positions_BT,
            use_cache=True,
            **{self._cache_argument: self._cache},
            **arguments,
        ).last_hidden_state
        return finish_logits(model.decoder.config, model.decoder.get_output_embeddings()(hidden_BTH[:, -1]))
