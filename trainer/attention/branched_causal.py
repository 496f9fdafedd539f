"""Causal attention for samples with branches, as an attention function of transformers.

A token sees the earlier tokens of its sample's common beginning and of its own branch, images included. That is MMCA
where no token is an image, so the layout is built with `is_image` all False.
"""

from __future__ import annotations

from trainer.attention.by_layout import LayoutAttention

BRANCHED_CAUSAL = LayoutAttention(
    "branched_causal", "causal attention with branches", "use shorter samples or another model, or build without share"
)
