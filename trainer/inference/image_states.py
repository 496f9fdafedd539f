"""What an image is to a decoder under MMCA: its keys and values in every layer, wherever it is.

An image's tokens attend only to themselves, so their hidden states depend on the image alone, and their keys on the
position only by its rotation. An image is read at position 0, where rotation changes nothing, and its keys are rotated
to their positions when a prompt shows it.

Shapes: N tiles, S side in pixels, Q tokens of a tile, H hidden size, K key-value heads, D head width.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import torch

from trainer.attention.layout import build_layout
from trainer.compat.transformers import cache_argument, own_cache, rotary
from trainer.inference.slots import Collected, States
from trainer.model.vision_chat import VisionChatModel


class ImageReader:
    """Reads tiles, and places them in sequences. Raises ValueError if this decoder's keys are not rotated as usual.

    Whether the logits are right is for trainer.inference.trial to find out.
    """

    def __init__(self, model: VisionChatModel, device: torch.device) -> None:
        rotation = rotary(model.decoder.base_model)
        if model.attention != "mmca" or rotation is None:
            raise ValueError("images depend on what precedes them, or their keys are not rotated in a known way")
        self._model, self._rotation, self._device = model, rotation, device
        side = model.encoder.image_size
        blank_3SS = torch.zeros(3, side, side, dtype=torch.uint8)
        with torch.no_grad():
            later = self._read(blank_3SS, torch.arange(1, model.image_tokens + 1, device=device))
            first = self.read(blank_3SS)
        self._is_rotated = [not torch.equal(key, other) for key, other in zip(first.keys, later.keys, strict=True)]
        """Of each layer; some decoders have layers without positions"""

    def read(self, tile_3SS: torch.Tensor) -> States:
        """Keys and values of a uint8 tile, with unrotated keys: all its tokens are at position 0."""
        return self._read(tile_3SS, torch.zeros(self._model.image_tokens, dtype=torch.int64, device=self._device))

    def _read(self, tile_3SS: torch.Tensor, positions_Q: torch.Tensor) -> States:
        model, num_tokens = self._model, self._model.image_tokens
        features_1QH = model.encode(tile_3SS[None].to(self._device))
        store = Collected(num_tokens)
        is_image_1Q = torch.ones(1, num_tokens, dtype=torch.bool, device=self._device)
        model.decoder.base_model(
            inputs_embeds=features_1QH.to(model.decoder.get_input_embeddings().weight.dtype),
            position_ids=positions_Q[None],
            use_cache=True,
            attention_mask=None,
            attention_layout=build_layout(is_image_1Q),
            **{cache_argument(): own_cache(store, model.decoder.config.num_hidden_layers)},
        )
        return store.states()

    def placed(self, states: States, position: int) -> States:
        """What `read` gave, as the states of the same tile whose first token is at `position`."""
        positions_Q = torch.arange(position, position + self._model.image_tokens, device=self._device)
        rotate = self._rotation(states.keys[0], positions_Q)
        keys = [
            rotate(key) if is_rotated else key for key, is_rotated in zip(states.keys, self._is_rotated, strict=True)
        ]
        return States(tuple(keys), states.values)
