"""Which rows a decoder can have, tried on a few tokens before the first prompt: shared memory, images that are placed.

Rule: what gives other logits than whole sequences is not used, and a note says so.
"""

# ruff: noqa: N806 - names end in their shape

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch

from trainer.attention.layout import build_layout
from trainer.compat.transformers import LIBRARY_ERRORS
from trainer.inference.cached_decoder import Prompt
from trainer.inference.image_states import ImageReader
from trainer.inference.rows import Read, Rows
from trainer.inference.separate_rows import SeparateRows
from trainer.inference.shared_rows import SharedRows
from trainer.inference.state_cache import StateCache
from trainer.inference.uncached_decoder import cache_is_right
from trainer.model.decoder import attention_window
from trainer.model.decoder_logits import finish_logits
from trainer.model.decoder_protocol import HfConfig, takes_positions
from trainer.model.vision_chat import VisionChatModel

_TEXT = 4
"""Tokens of the text before and behind the image of the trial, and of the image"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowsPlan:
    """The fastest rows that are right for a model."""

    model: VisionChatModel
    device: torch.device
    limit: int | None
    """Most positions that the model can read"""
    is_shared: bool
    uses_cache: bool
    images: ImageReader | None
    """What reads images apart from the text around them; None: they are read with it"""
    notes: tuple[str, ...]
    """A line for everything that the rows lack"""

    def open(self, num_rows: int, cache: StateCache) -> Rows:
        """Rows that have read nothing. A single one is a conversation: it stays in its memory until the next prompt."""
        if self.is_shared:
            return SharedRows(self.model, self.device, num_rows=num_rows, cache=cache, images=self.images)
        return SeparateRows(self.model, self.device, num_rows=num_rows, uses_cache=self.uses_cache, limit=self.limit)


def plan_rows(model: VisionChatModel, device: torch.device, limit: int | None) -> RowsPlan:
    """Try which rows are right for a model. limit: most positions that it can read."""
    uses_cache, images, is_shared = cache_is_right(model, device), None, False
    notes = []
    if uses_cache and not _sees_less(model.decoder.config, limit):
        tried = _with_small_images(model)
        if model.attention == "mmca":
            images = _image_reader(model, tried, device)
            if images is None:
                notes.append(
                    "images are read again with every prompt that no earlier one begins with: "
                    "this decoder's keys are not rotated in a way that is known here"
                )
        is_shared = images is not None or _is_right(tried, device, None)
    if not is_shared:
        notes = [
            "requests are computed one after the other, token by token, and nothing is kept of them: "
            "this decoder's cache does not give the right logits for several at once"
        ]
    return RowsPlan(
        model=model,
        device=device,
        limit=limit,
        is_shared=is_shared,
        uses_cache=uses_cache,
        images=images,
        notes=tuple(notes),
    )


def _sees_less(config: HfConfig, limit: int | None) -> bool:
    """Whether some layers do not attend to all earlier tokens, at lengths that the trial does not reach."""
    window = attention_window(config)
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return bool(layer_types) or (window is not None and (limit is None or window < limit))


def _image_reader(model: VisionChatModel, tried: VisionChatModel, device: torch.device) -> ImageReader | None:
    try:
        return ImageReader(model, device) if _is_right(tried, device, ImageReader(tried, device)) else None
    except LIBRARY_ERRORS:
        return None


def _with_small_images(model: VisionChatModel) -> VisionChatModel:
    """The same model, but of an image's tokens only the first are shown, which try the same at less cost."""
    small = copy.copy(model)
    small.image_tokens = min(_TEXT, model.image_tokens)
    vars(small)["encode"] = lambda images: model.encode(images)[:, : small.image_tokens]
    return small


@torch.no_grad()
def _is_right(model: VisionChatModel, device: torch.device, images: ImageReader | None) -> bool:
    """Whether shared rows give the logits of whole sequences: of an image between texts, and of a text.

    In half precision only large differences count: rounding differs as well.
    """
    shown, text = _prompts(model)
    tokens = [int(token) for token in text.ids[:2]]
    try:
        rows = SharedRows(model, device, num_rows=2, cache=StateCache(1 << 40), images=images)
        first, second = _read(rows, shown), _read(rows, text)
        step = rows.step(tokens)
        rows.leave(0, keep=True)
        step_alone = rows.step(tokens[:1])
        again = _read(rows, shown)
        unread = SharedRows(model, device, num_rows=2, cache=StateCache(0), images=images)
        together = [read.logits_V for _, read in sorted(unread.join_all([shown, text]), key=itemgetter(0))]
    except LIBRARY_ERRORS:
        return False
    of_shown = _whole(model, device, shown, tokens[:1])
    of_text = _whole(model, device, text, [tokens[1], tokens[0]])
    rows_of = torch.stack([first, step[0], again, second, step[1], step_alone[0], *together])
    whole = torch.cat([of_shown, of_shown[:1], of_text, of_shown[:1], of_text[:1]])
    tolerance = 1e-4 if whole.dtype in (torch.float32, torch.float64) else 0.1
    return bool((rows_of - whole).float().norm() <= tolerance * whole.float().norm())


def _read(rows: SharedRows, prompt: Prompt) -> torch.Tensor:
    """The logits [V] after a prompt."""
    (read,) = [read for read in rows.join(prompt) if isinstance(read, Read)]
    return read.logits_V


def _prompts(model: VisionChatModel) -> tuple[Prompt, Prompt]:
    size = model.decoder.get_input_embeddings().weight.shape[0]
    ids = np.array([token for token in range(size) if token != model.image_id])
    spread = ids[np.linspace(0, len(ids) - 1, 3 * _TEXT).astype(int)]
    image = np.full(model.image_tokens, model.image_id)
    side = model.encoder.image_size
    pixels = torch.randint(256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = np.concatenate([spread[:_TEXT], image, spread[_TEXT : 2 * _TEXT]])
    return (
        Prompt(ids=shown, images=pixels, slots=(_TEXT,), end_id=0),
        Prompt(ids=spread[2 * _TEXT :], images=pixels[:0], slots=(), end_id=0),
    )


def _whole(model: VisionChatModel, device: torch.device, prompt: Prompt, tokens: Sequence[int]) -> torch.Tensor:
    """The logits after a prompt and after each of some tokens behind it, [1 + tokens, V], by one forward over all."""
    ids_1T = torch.from_numpy(np.append(prompt.ids, tokens)).to(device)[None]
    slots = torch.tensor([(0, slot) for slot in prompt.slots], dtype=torch.int64, device=device).reshape(-1, 2)
    arguments: dict[str, object] = {}
    if takes_positions(model.decoder):
        arguments["position_ids"] = torch.arange(ids_1T.shape[1], device=device)[None]
    if model.uses_layout:
        arguments["attention_layout"] = build_layout(model.attended_as_images(ids_1T == model.image_id))
    hidden_1TH = model.decoder.base_model(
        inputs_embeds=model.embed(ids_1T, prompt.images.to(device), slots),
        attention_mask=None,
        use_cache=False,
        **arguments,
    ).last_hidden_state
    hidden = hidden_1TH[0, len(prompt.ids) - 1 :]
    return finish_logits(model.decoder.config, model.decoder.get_output_embeddings()(hidden))
