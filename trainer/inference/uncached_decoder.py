"""A decoder without a KV cache: it computes the whole sequence for every token, as training does.

For decoders whose cache does not give the same logits, or that have none: state-space models with caches of their own,
and those that place left-padded tokens wrongly. It has the methods of CachedDecoder.

Shapes: B sequences, T tokens, H hidden size, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.layout import build_layout
from trainer.compat.transformers import LIBRARY_ERRORS
from trainer.inference.cached_decoder import CachedDecoder, Prompt
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import takes_positions
from trainer.model.vision_chat import VisionChatModel

_LONG, _SHORT = 5, 3
"""Tokens of the prompts by which caches are tried"""


class UncachedDecoder:
    """The embeddings of what was read, for each sequence."""

    def __init__(self, model: VisionChatModel, rows: int, device: torch.device) -> None:
        self._model, self._device = model, device
        self._embeddings = [torch.zeros(0, model.hidden_size, device=device) for _ in range(rows)]
        self._is_image = [torch.zeros(0, dtype=torch.bool, device=device) for _ in range(rows)]

    def read_padded(self, prompts: Sequence[Prompt], *, first_position: int = 0) -> torch.Tensor:
        """Read prompts of any length. Returns the logits [B, V] after each. first_position: not needed here."""
        for row, prompt in enumerate(prompts):
            ids_1T = torch.from_numpy(prompt.ids).to(self._device)[None]
            if prompt.slots:
                slots = torch.tensor([(0, slot) for slot in prompt.slots], device=self._device)
                embedded = self._model.embed(ids_1T, prompt.images.to(self._device), slots)
            else:
                embedded = self._model.decoder.get_input_embeddings()(ids_1T)
            self._append(row, embedded[0], ids_1T[0] == self._model.image_id)
        return self._logits()

    def read_tokens(self, tokens: Sequence[int], positions_B1: torch.Tensor) -> torch.Tensor:
        """Read one text token per sequence. Returns the logits [B, V] after it. positions: not needed here."""
        ids_B = torch.tensor(tokens, device=self._device)
        for row, embedded in enumerate(self._model.decoder.get_input_embeddings()(ids_B)):
            self._append(row, embedded[None], torch.zeros(1, dtype=torch.bool, device=self._device))
        return self._logits()

    def crop(self, positions: int) -> bool:
        """Forget the last positions."""
        if positions:
            self._embeddings = [embeddings[:-positions] for embeddings in self._embeddings]
            self._is_image = [is_image[:-positions] for is_image in self._is_image]
        return True

    def _append(self, row: int, embedded_TH: torch.Tensor, is_image_T: torch.Tensor) -> None:
        self._embeddings[row] = torch.cat([self._embeddings[row].to(embedded_TH.dtype), embedded_TH])
        self._is_image[row] = torch.cat([self._is_image[row], is_image_T])

    def _logits(self) -> torch.Tensor:
        decoder = self._model.decoder
        rows = []
        for embeddings_TH, is_image_T in zip(self._embeddings, self._is_image, strict=True):
            arguments: dict[str, object] = {}
            if takes_positions(decoder):
                arguments["position_ids"] = torch.arange(len(embeddings_TH), device=self._device)[None]
            if self._model.uses_layout:
                arguments["attention_layout"] = build_layout(self._model.attended_as_images(is_image_T)[None])
            hidden_1TH = decoder.base_model(
                inputs_embeds=embeddings_TH[None].clone(), attention_mask=None, use_cache=False, **arguments
            ).last_hidden_state
            rows.append(decoder.get_output_embeddings()(hidden_1TH[:, -1]))
        return finish_logits(decoder.config, torch.cat(rows))


@torch.no_grad()
def cache_is_right(model: VisionChatModel, device: torch.device) -> bool:
    """Whether the decoder's cache gives the logits of whole sequences: with padding, token by token and piece by piece.

    In half precision only large differences count: rounding differs as well.
    """
    try:
        cached, whole = _tried(CachedDecoder, model, device), _tried(UncachedDecoder, model, device)
    except LIBRARY_ERRORS:
        return False
    tolerance = 1e-3 if whole.dtype in (torch.float32, torch.float64) else 0.1
    return bool((cached - whole).float().norm() <= tolerance * whole.float().norm())


def _tried(
    kind: type[CachedDecoder] | type[UncachedDecoder], model: VisionChatModel, device: torch.device
) -> torch.Tensor:
    """Logits [6, V] after two prompts, a token of each, another one, and a prompt that follows."""
    size = model.decoder.get_input_embeddings().weight.shape[0]
    ids = [token for token in range(size) if token != model.image_id]
    spread = np.array([ids[len(ids) * number // (_LONG + _SHORT)] for number in range(_LONG + _SHORT)])
    prompts = [_prompt(model, spread[:_LONG]), _prompt(model, spread[_LONG:])]
    decoder = kind(model, 2, device)
    logits = [decoder.read_padded(prompts)]
    logits.append(decoder.read_tokens([int(spread[0])] * 2, torch.tensor([[_LONG], [_SHORT]])))
    alone = kind(model, 1, device)
    alone.read_padded(prompts[:1])
    logits.append(alone.read_tokens([int(spread[1])], torch.tensor([[_LONG]])))
    logits.append(alone.read_padded(prompts[1:], first_position=_LONG + 1))
    return torch.cat(logits)


def _prompt(model: VisionChatModel, ids: npt.NDArray[np.int64]) -> Prompt:
    side = model.encoder.image_size
    return Prompt(ids=ids, images=torch.zeros(0, 3, side, side, dtype=torch.uint8), slots=(), end_id=0)
