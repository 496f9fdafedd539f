"""Multi-modal causal attention (MMCA, arXiv 2309.14327) for decoders of transformers, through its attention interface.

For query row i, rotary embedding already applied, every set restricted to the sample that i belongs to:

    image token   out_i = v_i
    text token    out_i = softmax over text keys j <= i . V  +  softmax over image keys j < i . V   (0 without any)

Padding is read by nobody; its own rows give v_i too. Only text rows need attention, and no kernel needs a mask: the
text rows of a sample alone are plainly causal, and the rows between two images see the same image keys. So memory is
linear in T, and CPU and CUDA run the same code on the flash kernels of scaled_dot_product_attention.

    register()
    model.set_attn_implementation("mmca")
    model(input_ids, position_ids=..., mmca_layout=build_layout(is_image, segment_ids), use_cache=False)

The layout alone says what is padding and where samples end; the model's `attention_mask` is not read. Positions are the
caller's: they restart with each sample. Sliding windows, soft caps, sinks and position biases are refused.

Shapes: B batch, H heads, K key-value heads, T key tokens, Q query tokens, D head width, N gathered rows.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from trainer.mmca_layout import MmcaLayout, StepMasks, TextRows

NAME = "mmca"


def register() -> None:
    """Make `attn_implementation="mmca"` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, mmca_attention)
    AttentionMaskInterface.register(NAME, no_mask)


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
    """What a decoder layer calls; returns the output [B, Q, H, D] and no weights.

    `dropout` drops attention weights, as transformers' sdpa does; image rows have none to drop. Raises ValueError if
    the layout is missing or of another shape, or if the model wants attention that MMCA does not define.
    """
    if mmca_layout is None:
        raise ValueError(
            "MMCA attention was called without a layout; pass model(..., mmca_layout=build_layout(is_image, "
            "segment_ids)), and call enable_generation(model) before generate(..., is_image=...)"
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
    """transformers' mask for MMCA: none, the layout knows. Chunked attention, which only shows here, is refused."""
    is_sliding = local_size is not None and local_size == getattr(config, "sliding_window", None)
    if local_size is not None and not is_sliding and kv_offset + kv_length > local_size:
        raise ValueError(
            f"this model attends in chunks of {local_size} tokens, which MMCA does not define, and rows are "
            f"{kv_offset + kv_length} tokens long; use shorter rows, another model, or causal attention"
        )


def _check(
    module: torch.nn.Module,
    layout: MmcaLayout,
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    sliding_window: int | None,
    others: dict[str, object],
) -> None:
    got = (query_BHQD.shape[0], query_BHQD.shape[2], key_BKTD.shape[2])
    wanted = (layout.batch, layout.num_queries, layout.num_keys)
    if got != wanted:
        raise ValueError(
            "MMCA attention got {} rows, {} queries and {} keys".format(*got)
            + ", but its layout is for {} rows, {} queries and {} keys; ".format(*wanted)
            + "build one layout for each forward, over all keys, those in a dynamic KV cache included"
        )
    if sliding_window is not None and layout.longest_sample > sliding_window:
        raise ValueError(
            f"this model's sliding window is {sliding_window} tokens, but a sample spans {layout.longest_sample}; "
            "MMCA does not define windows: use shorter samples, another model, or causal attention"
        )
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise ValueError(f"{type(module).__name__} asks for {', '.join(unknown)}, which MMCA does not define")


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
    out_NHD = _rows(own_value_BKQD).repeat_interleave(groups, dim=1)
    if plan.over_text:
        attended_NHD = _attend_gathered(query_BHQD, key_BKTD, value_BKTD, plan, scaling, dropout)
        out_NHD = out_NHD.index_copy(0, plan.queries, attended_NHD)
    return out_NHD.view(batch, num_queries, num_heads, width)


def _attend_gathered(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: TextRows,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """The text rows' outputs [N, H, D], in the plan's order."""
    query = _gather(query_BHQD, plan.queries)
    key, value = (_gather(x, plan.keys) for x in (key_BKTD, value_BKTD))
    over_text: list[torch.Tensor] = []
    over_images: list[torch.Tensor] = []
    for calls, out, causal in ((plan.over_text, over_text, True), (plan.over_images, over_images, False)):
        for call in calls:
            own, query = _part(query, call.queries)
            if call.keys[0] == call.keys[1]:
                out.append(torch.zeros_like(own))
                continue
            seen, key = _part(key, call.keys)
            seen_value, value = _part(value, call.keys)
            is_causal = causal and call.mask is None
            out.append(_attend(own, seen, seen_value, call.mask, scaling, dropout, is_causal=is_causal))
    both = torch.cat(over_text, dim=2) + torch.cat(over_images, dim=2)
    return both[0].transpose(0, 1)


def _part(sequence: torch.Tensor, bounds: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A slice of [1, H, N, D] along N, and the sequence to take the next one from; slices may overlap."""
    part, rest = _Part.apply(sequence, *bounds)  # type: ignore[no-untyped-call]
    return part, rest


class _Part(torch.autograd.Function):
    """Slicing, but with one gradient buffer for all slices of a sequence, to which each adds as soon as it has its own.

    Plain slices would make a buffer of the sequence's size each; to gather their gradients first, and add them all at
    once, would hold each image's as often as text follows it: memory would grow with the square of the images.
    """

    @staticmethod
    def forward(ctx: Any, sequence: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.start, ctx.stop = sequence.shape, start, stop
        return sequence[:, :, start:stop], sequence.view_as(sequence)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, part: torch.Tensor | None, rest: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, None, None]:
        if part is not None:
            if rest is None:  # the last slice taken is the first to come back
                batch, num_heads, length, width = ctx.shape
                rest = part.new_zeros(batch, length, num_heads, width).transpose(1, 2)
            rest[:, :, ctx.start : ctx.stop] += part
        return rest, None, None


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
    groups = query.shape[1] // key.shape[1]
    # Without a mask and in these types the flash kernels read grouped heads in place; other kernels would fall back to
    # one that materialises every weight.
    in_place = mask is None and (query.device.type == "cpu" or query.dtype in (torch.float16, torch.bfloat16))
    if groups > 1 and not in_place:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=groups > 1 and in_place,
    )


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, H, T, D] as rows [B * T, H, D]: a view where memory is in the order B, T, H, D, as decoders make it."""
    return x.transpose(1, 2).flatten(0, 1)


def _gather(x: torch.Tensor, index_N: torch.Tensor) -> torch.Tensor:
    """Rows of [B, H, T, D] as one sequence [1, H, N, D]."""
    return _rows(x).index_select(0, index_N).transpose(0, 1)[None]


def _attend_by_masks(
    query_BHQD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    plan: StepMasks,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Few queries: score every cached key once, and take both softmaxes of the same scores."""
    batch, num_heads, num_queries, width = query_BHQD.shape
    num_key_heads, num_keys = key_BKTD.shape[1:3]
    scale = width**-0.5 if scaling is None else scaling
    grouped = query_BHQD.reshape(batch, num_key_heads, -1, width)  # a key head's queries: groups x Q rows
    scores = grouped @ key_BKTD.transpose(2, 3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * scale
    scores = scores.view(batch, num_key_heads, -1, num_queries, num_keys)
    text, image = (_softmax_over(scores, seen_BQT[:, None, None]) for seen_BQT in (plan.text, plan.image))
    weights = functional.dropout(text, dropout) + functional.dropout(image, dropout)
    out = weights.to(value_BKTD.dtype).view(batch, num_key_heads, -1, num_keys) @ value_BKTD
    return out.view(batch, num_heads, num_queries, width).transpose(1, 2).contiguous()


def _softmax_over(scores: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Softmax over the seen keys; all zero where none is seen."""
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1) * seen
