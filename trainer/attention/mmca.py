"""Multi-modal causal attention (MMCA, https://arxiv.org/abs/2309.14327) as an attention function of transformers.

For query row i, after rotary embedding, every set restricted to the sample that i belongs to:

    image token   out_i = v_i
    text token    out_i = softmax over text keys j <= i . V  +  softmax over image keys j < i . V   (0 without any)

No row reads padding; padding rows output v_i too. Only text rows need attention, and no kernel needs a mask: among
themselves the text rows of a sample are plain causal, and all text rows between two images see the same image keys. So
memory is linear in T, and CPU and CUDA run the same code on the flash kernels of scaled_dot_product_attention.

    register()
    model.set_attn_implementation("mmca")
    model(input_ids, position_ids=..., mmca_layout=build_layout(is_image, segment_ids), use_cache=False)

The layout defines padding and samples; the model's `attention_mask` is not read. The caller passes positions, which
restart with each sample. Sliding windows, soft caps, sinks and position biases are refused.

Shapes: B batch, H heads, K key-value heads, T key tokens, Q query tokens, D head width, N gathered rows.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional

from trainer.attention.gather import first, gather, rows
from trainer.attention.layout import MmcaLayout, Run, SampleRows, StepMasks, TextRows
from trainer.compat.transformers import register_attention

NAME = "mmca"


def register() -> None:
    """Register `attn_implementation="mmca"` with transformers; calling it again changes nothing."""
    register_attention(NAME, mmca_attention, no_mask)


def mmca_attention(
    module: torch.nn.Module,
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: object,
    scaling: float | None = None,
    dropout: float = 0.0,
    mmca_layout: MmcaLayout | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """Called by each decoder layer; returns the output [B, Q, H, D] and no attention weights.

    dropout: of attention weights, as in transformers' sdpa; image rows have none. Raises ValueError if the layout is
    missing or has another shape, or if the model needs attention that MMCA does not define.
    """
    if mmca_layout is None:
        raise ValueError(
            "MMCA attention was called without a layout; pass model(..., mmca_layout=build_layout(is_image, "
            "segment_ids)); generate() passes none, so generate with trainer.inference.generate instead"
        )
    _check(module, mmca_layout, query_BHQD, key_BKTD, sliding_window, others)
    plan = mmca_layout.plan
    if isinstance(plan, StepMasks):
        return _attend_by_masks(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout), None
    return _attend_text_rows(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout), None


def no_mask(
    *,
    kv_length: int,
    kv_offset: int = 0,
    local_size: int | None = None,
    config: object = None,
    **others: object,
) -> None:
    """transformers' mask function for MMCA: no mask. Refuses chunked attention, which is visible only here."""
    is_sliding = local_size is not None and local_size == getattr(config, "sliding_window", None)
    if local_size is not None and not is_sliding and kv_offset + kv_length > local_size:
        raise ValueError(
            f"this model attends in chunks of {local_size} tokens, which MMCA does not define, and sequences are "
            f"{kv_offset + kv_length} tokens long; use shorter sequences, another model, or causal attention"
        )


def _check(
    module: torch.nn.Module,
    layout: MmcaLayout,
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    sliding_window: int | None,
    others: dict[str, object],
) -> None:
    actual = (query_BHQD.shape[0], query_BHQD.shape[2], key_BKTD.shape[2])
    expected = (layout.batch, layout.num_queries, layout.num_keys)
    if actual != expected:
        raise ValueError(
            "MMCA attention got {} rows, {} queries and {} keys".format(*actual)
            + ", but its layout is for {} rows, {} queries and {} keys; ".format(*expected)
            + "build one layout per forward, over all keys, those in a dynamic KV cache included"
        )
    if sliding_window is not None and layout.longest_sample > sliding_window:
        raise ValueError(
            f"this model's sliding window is {sliding_window} tokens, but a sample spans {layout.longest_sample}; "
            "MMCA does not define windows: use shorter samples, another model, or causal attention"
        )
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise ValueError(f"{type(module).__name__} uses {', '.join(unknown)}, which MMCA does not define")


def _attend_text_rows(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: TextRows,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    batch, num_heads, num_queries, width = query_BHQD.shape
    own_value_BKQD = value_BKTD[:, :, value_BKTD.shape[2] - num_queries :]
    groups = num_heads // value_BKTD.shape[1]
    out_NHD = rows(own_value_BKQD).repeat_interleave(groups, dim=1)
    if plan.samples:
        attended_NHD = _attend_gathered(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout)
        out_NHD = out_NHD.index_copy_(0, plan.queries, attended_NHD)  # into a copy of the values
    return out_NHD.view(batch, num_queries, num_heads, width)


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
    by_sample = [sample.queries for sample in samples]
    by_run = [run.queries for sample in samples for run in sample.runs]
    queries_of_samples, queries_of_runs = gather(query_BHQD, plan.queries, by_sample, by_run)
    keys, values = (gather(x, plan.keys, [*_key_lengths(samples)])[0] for x in (key_BKTD, value_BKTD))
    over_text = [
        _attend(own, key, value, sample.mask, scaling, dropout, is_causal=sample.mask is None)
        for sample, own, key, value in zip(samples, queries_of_samples, keys[::2], values[::2], strict=True)
    ]
    out = torch.cat(over_text, dim=2)
    if any(sample.image_keys for sample in samples):
        runs, over_images = iter(queries_of_runs), list[torch.Tensor]()
        for sample, key, value in zip(samples, keys[1::2], values[1::2], strict=True):
            over_images += _attend_images(runs, key, value, sample.runs, scaling, dropout)
        out = out + torch.cat(over_images, dim=2)
    return out[0].transpose(0, 1)


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
            yield torch.zeros_like(query)
            continue
        if is_shared:
            seen, key = first(key, run.image_keys)
            seen_value, value = first(value, run.image_keys)
        yield _attend(query, seen, seen_value, None, scaling, dropout)


def _key_lengths(samples: Sequence[SampleRows]) -> Iterator[int]:
    for sample in samples:
        yield sample.text_keys
        yield sample.image_keys


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


def _attend_by_masks(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: StepMasks,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """For few queries: score every cached key once, and take both softmaxes of the same scores."""
    batch, num_heads, num_queries, width = query_BHQD.shape
    num_key_heads, num_keys = key_BKTD.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    grouped = query_BHQD.reshape(batch, num_key_heads, -1, width)  # the queries of a key head: groups * Q rows
    scores = grouped @ key_BKTD.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    scores = scores.view(batch, num_key_heads, -1, num_queries, num_keys)
    text, image = (_softmax_over(scores, seen_BQT[:, None, None]) for seen_BQT in (plan.text, plan.image))
    weights = functional.dropout(text, dropout) + functional.dropout(image, dropout)
    out = weights.to(value_BKTD.dtype).view(batch, num_key_heads, -1, num_keys) @ value_BKTD
    return out.view(batch, num_heads, num_queries, width).transpose(1, 2).contiguous()


def _softmax_over(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over the seen keys; all zero where no key is seen."""
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
