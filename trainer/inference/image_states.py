"""What an image is to a decoder under MMCA: its keys and values in every layer, wherever it is.

Each of an image's tokens attends only to itself, so its hidden states depend on the image alone, and its keys on the
position only by their rotation. An image is read at position 0, where rotation changes nothing, and its keys are
rotated to their positions when a prompt shows it.

Shapes: N tiles, S side in pixels, Q tokens of a tile, H hidden size, K key-value heads, D head width.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import torch

from trainer.attention.layout import build_layout
from trainer.compat.transformers import Rotate, cache_argument, own_cache, rotary
from trainer.inference.slots import Collected, States
from trainer.model.vision_chat import VisionChatModel


class ImageReader:
    """Reads tiles, and places them in sequences. Raises ValueError if this decoder's keys are not rotated as usual.

    Whether the logits are right is for trainer.inference.open_rows to find out.
    """

    def __init__(self, model: VisionChatModel, device: torch.device) -> None:
        rotation = rotary(model.decoder.base_model)
        if model.attention != "mmca" or rotation is None:
            raise ValueError("images depend on what precedes them, or their keys are not rotated in a known way")
        self._model, self._rotation, self._device = model, rotation, device
        weight = model.decoder.get_input_embeddings().weight
        features_QH = torch.randn(2, model.hidden_size, generator=torch.Generator().manual_seed(0)).to(weight)
        with torch.no_grad():
            first = self.read(features_QH)
            later = self._read(features_QH, torch.tensor([1, 2], device=device))
        self._is_rotated = [not torch.equal(key, other) for key, other in zip(first.keys, later.keys, strict=True)]
        """Of each layer; some decoders have layers without positions"""
        self._last: tuple[tuple[int, torch.dtype], Rotate] | None = None
        """The rotation to the position that was used last, since prompts of a data set begin alike"""

    def encode(self, tiles_N3SS: torch.Tensor) -> torch.Tensor:
        """The embeddings [N, Q, H] of uint8 tiles."""
        features_NQH = self._model.encode(tiles_N3SS.to(self._device))
        return features_NQH.to(self._model.decoder.get_input_embeddings().weight.dtype)

    def read(self, features_QH: torch.Tensor) -> States:
        """Keys and values of some tokens of tiles, with unrotated keys: all are read at position 0.

        They do not depend on each other in the decoder, so tiles may be read in pieces, and several at once.
        """
        return self._read(features_QH, torch.zeros(len(features_QH), dtype=torch.int64, device=self._device))

    def _read(self, features_QH: torch.Tensor, positions_Q: torch.Tensor) -> States:
        store = Collected(len(features_QH))
        is_image_1Q = torch.ones(1, len(features_QH), dtype=torch.bool, device=self._device)
        decoder = self._model.decoder
        decoder.base_model(
            inputs_embeds=features_QH[None],
            position_ids=positions_Q[None],
            use_cache=True,
            attention_mask=None,
            attention_layout=build_layout(is_image_1Q),
            **{cache_argument(): own_cache(store, decoder.config.num_hidden_layers)},
        )
        return store.states()

    def placed(self, states: States, position: int) -> States:
        """What `read` gave, as the states of the same tile whose first token is at `position`."""
        place, last = (position, states.keys[0].dtype), self._last
        if last is None or last[0] != place:
            positions_Q = torch.arange(position, position + self._model.image_tokens, device=self._device)
            self._last = last = (place, self._rotation(states.keys[0], positions_Q))
        rotate = last[1]
        keys = [
            rotate(key) if is_rotated else key for key, is_rotated in zip(states.keys, self._is_rotated, strict=True)
        ]
        return States(tuple(keys), states.values)
