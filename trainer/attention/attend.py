"""The attention of text rows, gathered sample after sample: no kernel needs a mask, and image rows are not touched.

Shapes: B batch, H heads, K key-value heads, T key tokens, Q query tokens, D head width, N gathered rows.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from trainer.attention.branches import attend_branches
from trainer.attention.flex import BlockMasks, flex_attention
from trainer.attention.gather import first, gather, rows
from trainer.attention.layout import TextRows
from trainer.attention.sample_rows import Run, SampleRows


def attend_text_rows(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: TextRows,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    batch, num_heads, num_queries, _ = query_BHQD.shape
    own_value_BKQD = value_BKTD[:, :, value_BKTD.shape[2] - num_queries :]
    groups = num_heads // value_BKTD.shape[1]
    out_NHD = rows(own_value_BKQD).repeat_interleave(groups, dim=1)
    if plan.samples:
        if plan.block_masks is not None and not dropout:
            attended_NHD = _attend_by_blocks(query_BHQD, key_BKTD, value_BKTD, plan, plan.block_masks, scaling)
        else:
            attended_NHD = _attend_gathered(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout)
        out_NHD = out_NHD.index_copy_(0, plan.queries, attended_NHD)  # into a copy of the values
    return out_NHD.view(batch, num_queries, num_heads, -1)


def _attend_gathered(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: TextRows,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """The outputs [N, H, D] of the text rows, in the plan's order."""
    samples = plan.samples
    by_piece = [length for sample in samples for length in sample.text_pieces]
    by_run = [run.queries for sample in samples for run in sample.runs]
    of_pieces, of_runs = map(iter, gather(query_BHQD, plan.queries, by_piece, by_run))
    key_lengths = [length for sample in samples for length in (*sample.key_pieces, sample.image_keys)]
    keys, values = (iter(gather(x, plan.keys, key_lengths)[0]) for x in (key_BKTD, value_BKTD))
    over_text, over_images = list[torch.Tensor](), list[torch.Tensor]()
    for sample in samples:
        over_text += _attend_own_text(sample, of_pieces, keys, values, scaling, dropout)
        over_images += _attend_images(of_runs, next(keys), next(values), sample.runs, scaling, dropout)
    out = torch.cat(over_text, dim=2)
    if any(sample.image_keys for sample in samples):
        out = out + torch.cat(over_images, dim=2)
    return out[0].transpose(0, 1)


def _attend_by_blocks(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: TextRows,
    masks: BlockMasks,
    scaling: float | None,
) -> torch.Tensor:
    """The same by FlexAttention: one kernel for all text keys and one for all image keys."""
    ((query,),) = gather(query_BHQD, plan.queries, [masks.num_text])
    cut = [masks.num_text, masks.num_image]
    (keys,), (values,) = (gather(x, masks.keys, cut) for x in (key_BKTD, value_BKTD))
    out = flex_attention(query, keys[0], values[0], masks.text, scaling)
    if masks.image is not None:
        out = out + flex_attention(query, keys[1], values[1], masks.image, scaling)
    return out[0].transpose(0, 1)


def _attend_own_text(
    sample: SampleRows,
    queries: Iterator[torch.Tensor],
    keys: Iterator[torch.Tensor],
    values: Iterator[torch.Tensor],
    scaling: float | None,
    dropout: float,
) -> Iterator[torch.Tensor]:
    """The attention of a sample's text over its text: of all of it, or of the beginning and then of the branches."""
    beginning = next(keys), next(values)
    yield _attend(next(queries), *beginning, sample.mask, scaling, dropout, is_causal=sample.mask is None)
    if sample.branches:
        own = next(keys), next(values)
        yield attend_branches(next(queries), beginning, own, sample.branches, scaling, dropout)


def _attend_images(
    queries: Iterator[torch.Tensor],
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[Run],
    scaling: float | None,
    dropout: float,
) -> Iterator[torch.Tensor]:
    """For each run of a sample's text, its attention over the images before it. key, value: of all its images."""
    is_shared = sum(run.image_keys > 0 for run in runs) > 1
    for run in runs:
        query = next(queries)
        if is_shared:  # once for all runs, else memory grows with the square of the number of images
            key, value = _heads_for(query, None, key, value)
        seen, seen_value = key, value
        if not run.image_keys:
            yield torch.zeros_like(query[..., :1]).expand(*query.shape[:-1], value.shape[-1])
            continue
        if is_shared:
            seen, key = first(key, run.image_keys)
            seen_value, value = first(value, run.image_keys)
        yield _attend(query, seen, seen_value, None, scaling, dropout)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    key, value = _heads_for(query, mask, key, value)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] > key.shape[1],
    )


def _heads_for(
    query: torch.Tensor, mask: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values with as many heads as the kernel needs.

    Without a mask and in these types the flash kernels read grouped heads in place. In other cases the kernel would be
    one that materialises every attention weight, so heads are repeated.
    """
    groups = query.shape[1] // key.shape[1]
    in_place = mask is None and (query.device.type == "cpu" or query.dtype in (torch.float16, torch.bfloat16))
    if groups == 1 or in_place:
        return key, value
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
