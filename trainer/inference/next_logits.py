"""One forward of a decoder over new tokens, whose keys and values a store keeps.

Shapes: B rows, Q new tokens of each, K keys, H hidden size, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import torch

from trainer.attention.layout import AttentionLayout
from trainer.compat.transformers import KeyValueStore, cache_argument, own_cache
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import takes_positions
from trainer.model.vision_chat import VisionChatModel


class NextLogits:
    """The forward of one model."""

    def __init__(self, model: VisionChatModel) -> None:
        self._decoder = model.decoder
        self._cache_argument, self._takes_positions = cache_argument(), takes_positions(model.decoder)

    def __call__(
        self,
        embeddings_BQH: torch.Tensor,
        positions_BQ: torch.Tensor,
        store: KeyValueStore,
        *,
        layout: AttentionLayout | None = None,
        mask_BK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The logits [B, V] after the last new token of each row. mask: 0 for padding; a layout replaces it."""
        decoder = self._decoder
        arguments: dict[str, object] = {"attention_mask": mask_BK if layout is None else None}
        if layout is not None:
            arguments["attention_layout"] = layout
        if self._takes_positions:
            arguments["position_ids"] = positions_BQ
        arguments[self._cache_argument] = own_cache(store, decoder.config.num_hidden_layers)
        hidden_BQH = decoder.base_model(inputs_embeds=embeddings_BQH, use_cache=True, **arguments).last_hidden_state
        return finish_logits(decoder.config, decoder.get_output_embeddings()(hidden_BQH[:, -1]))
