"""Attention functions of transformers that read an AttentionLayout instead of a mask.

Shapes: B batch, H heads, K key-value heads, T key tokens, Q query tokens, D head width.
"""

# ruff: noqa: N803 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from trainer.attention.attend import attend_text_rows
from trainer.attention.cached import attend_by_masks
from trainer.attention.layout import AttentionLayout, StepMasks
from trainer.compat.transformers import register_attention


@dataclass(frozen=True, slots=True)
class LayoutAttention:
    """An attention by its name in transformers; title and way_out: how errors call it, and what they advise."""

    name: str
    title: str
    way_out: str

    def register(self) -> None:
        """Register `attn_implementation=name` with transformers; calling it again changes nothing."""
        register_attention(self.name, self.attend, self.no_mask)

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """Counts calls: the list inside gets the class of each layer that attends; one without a layout is refused."""
        calls: list[str] = []

        def attend(module: torch.nn.Module, *arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
            calls.append(type(module).__name__)
            if options.get("attention_layout") is None:
                raise ValueError("its layers do not pass on to their attention which positions are images")
            return self.attend(module, *arguments, **options)

        register_attention(self.name, attend, self.no_mask)
        try:
            yield calls
        finally:
            self.register()

    def attend(
        self,
        module: torch.nn.Module,
        query_BHQD: torch.Tensor,
        key_BKTD: torch.Tensor,
        value_BKTD: torch.Tensor,
        attention_mask: object,
        scaling: float | None = None,
        dropout: float = 0.0,
        attention_layout: AttentionLayout | None = None,
        sliding_window: int | None = None,
        **others: object,
    ) -> tuple[torch.Tensor, None]:
        """Called by each decoder layer; returns the output [B, Q, H, D] and no attention weights.

        dropout: of attention weights, as in transformers' sdpa; image rows have none. Raises ValueError if the layout
        is missing or has another shape, or if the model needs attention that this one does not define.
        """
        if attention_layout is None:
            raise ValueError(
                f"{self.title} was called without a layout; pass model(..., attention_layout=build_layout(is_image, "
                "segment_ids)); generate() passes none, so generate with trainer.inference.generate instead"
            )
        self._check(module, attention_layout, query_BHQD, key_BKTD, sliding_window, others)
        plan = attention_layout.plan
        if isinstance(plan, StepMasks):
            return attend_by_masks(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout), None
        return attend_text_rows(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout), None

    def no_mask(
        self,
        *,
        kv_length: int,
        kv_offset: int = 0,
        local_size: int | None = None,
        config: object = None,
        **others: object,
    ) -> None:
        """transformers' mask function: no mask. Refuses chunked attention, which is visible only here."""
        is_sliding = local_size is not None and local_size == getattr(config, "sliding_window", None)
        if local_size is not None and not is_sliding and kv_offset + kv_length > local_size:
            raise ValueError(
                f"this model attends in chunks of {local_size} tokens, which {self.title} does not define, and "
                f"sequences are {kv_offset + kv_length} tokens long; {self.way_out}"
            )

    def _check(
        self,
        module: torch.nn.Module,
        layout: AttentionLayout,
        query_BHQD: torch.Tensor,
        key_BKTD: torch.Tensor,
        sliding_window: int | None,
        others: dict[str, object],
    ) -> None:
        actual = (query_BHQD.shape[0], query_BHQD.shape[2], key_BKTD.shape[2])
        expected = (layout.batch, layout.num_queries, layout.num_keys)
        if actual != expected:
            raise ValueError(
                f"{self.title} got {actual[0]} rows, {actual[1]} queries and {actual[2]} keys, but its layout is for "
                f"{expected[0]} rows, {expected[1]} queries and {expected[2]} keys; build one layout per forward, over "
                "all keys, those in a dynamic KV cache included"
            )
        if sliding_window is not None and layout.longest_sample > sliding_window:
            raise ValueError(
                f"this model's sliding window is {sliding_window} tokens, but a sample spans {layout.longest_sample}; "
                f"{self.title} does not define windows: {self.way_out}"
            )
        unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
        if unknown:
            raise ValueError(f"{type(module).__name__} uses {', '.join(unknown)}, which {self.title} does not define")
