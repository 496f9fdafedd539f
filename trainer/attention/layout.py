"""Which tokens are images and which samples they belong to, prepared once per forward for every layer's attention.

The rule: everything that needs a loop or a number on the host is decided here, from small [B, T] tensors, best on the
CPU. The attention of a layer then only gathers, calls kernels and scatters; it never waits for the device.

Shapes: B batch (rows), T key tokens, Q query tokens, the last of T (all, unless a KV cache holds earlier ones).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

# Up to so many queries against cached keys are answered with masks over the whole cache: gathering would copy it.
MASKED_QUERIES = 16


class Run(NamedTuple):
    """Neighbouring text queries of a sample that the same images precede: how many they are, and their image keys."""

    queries: int
    image_keys: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleRows:
    """A sample among the gathered rows: how many of each kind are its own."""

    queries: int
    text_keys: int
    image_keys: int
    runs: tuple[Run, ...]  # they make up the queries; a run sees the first of the image keys
    mask: torch.Tensor | None = None  # bool [queries, text_keys] where a KV cache holds some keys; else it is causal


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextRows:
    """Plan for training and prompts: gather the text rows, sample after sample, and leave the image rows alone.

    `queries` and `keys` index a [B * Q] and a [B * T] flattening; `keys` are each sample's text, then its images.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    samples: tuple[SampleRows, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepMasks:
    """Plan for a few new tokens against a KV cache: what each query sees, bool [B, Q, T].

    An image query sees, as its only text key, itself: its output is its own value.
    """

    text: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MmcaLayout:
    """What `model(..., mmca_layout=...)` takes; `build_layout` makes it."""

    batch: int
    num_queries: int
    num_keys: int
    longest_sample: int  # positions from its first token to its last
    plan: TextRows | StepMasks

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> MmcaLayout:
        """The same layout with its tensors on `device`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        plan = self.plan
        if isinstance(plan, StepMasks):
            return replace(self, plan=StepMasks(text=move(plan.text), image=move(plan.image)))
        samples = tuple(one if one.mask is None else replace(one, mask=move(one.mask)) for one in plan.samples)
        return replace(self, plan=replace(plan, queries=move(plan.queries), keys=move(plan.keys), samples=samples))


def build_layout(
    is_image: torch.Tensor, segment_ids: torch.Tensor | None = None, *, num_queries: int | None = None
) -> MmcaLayout:
    """Prepare the attention of one forward.

    `is_image` [B, T], bool: the positions that placeholders expanded to, for all keys (those in a KV cache too).
    `segment_ids` [B, T], whole numbers: 0 padding, else the sample's number in its row; a 0/1 attention mask is one.
    None: no padding, one sample a row. `num_queries`: the last tokens that are new; None: all.
    The tensors of the result are on `is_image`'s device. Raises ValueError if shapes or types do not fit.
    """
    if segment_ids is None:
        segment_ids = torch.ones_like(is_image, dtype=torch.int64)
    if is_image.dtype != torch.bool or is_image.dim() != 2:
        got = f"{is_image.dtype} {list(is_image.shape)}"
        raise ValueError(f"is_image is {got}; wanted torch.bool [rows, tokens], True where a token is part of an image")
    if segment_ids.shape != is_image.shape or segment_ids.is_floating_point():
        got = f"{segment_ids.dtype} {list(segment_ids.shape)}"
        raise ValueError(f"segment_ids is {got}; wanted whole numbers {list(is_image.shape)}, as is_image is")
    batch, num_keys = is_image.shape
    num_queries = num_keys if num_queries is None else num_queries
    if not 0 < num_queries <= num_keys:
        raise ValueError(f"num_queries is {num_queries}; wanted 1 to {num_keys}, the number of tokens in is_image")
    plan: TextRows | StepMasks
    if num_queries < num_keys and num_queries <= MASKED_QUERIES:
        plan, longest = _step_masks(is_image, segment_ids, num_queries), num_keys
    else:
        plan, longest = _text_rows(is_image, segment_ids, num_queries)
    return MmcaLayout(batch=batch, num_queries=num_queries, num_keys=num_keys, longest_sample=longest, plan=plan)


def _step_masks(is_image: torch.Tensor, segment_ids: torch.Tensor, num_queries: int) -> StepMasks:
    """Stays on the device: in generation a layout is made for every token."""
    num_keys = is_image.shape[1]
    keys = torch.arange(num_keys, device=is_image.device)
    queries = keys[num_keys - num_queries :]
    is_text = (~is_image) & (segment_ids != 0)
    same_sample = segment_ids[:, queries, None] == segment_ids[:, None, :]
    asks = is_text[:, queries, None]
    seen = asks & same_sample & (keys <= queries[:, None])
    itself = ~asks & (keys == queries[:, None])
    return StepMasks(text=(seen & is_text[:, None, :]) | itself, image=seen & is_image[:, None, :])


def _text_rows(is_image: torch.Tensor, segment_ids: torch.Tensor, num_queries: int) -> tuple[TextRows, int]:
    """The gathering plan, and the number of positions that the longest sample spans."""
    num_keys = is_image.shape[1]
    first_query = num_keys - num_queries
    none = np.zeros(0, dtype=np.int64)
    queries, keys, samples, longest = [none], [none], [], 0
    for row, (images, segments) in enumerate(
        zip(is_image.numpy(force=True), segment_ids.numpy(force=True), strict=True)
    ):
        for sample in np.unique(segments[segments != 0]):
            positions = np.flatnonzero(segments == sample)
            longest = max(longest, int(positions[-1] - positions[0]) + 1)
            image = images[positions]
            text = positions[~image]
            new = text >= first_query
            if new.any():
                queries.append(text[new] - first_query + row * num_queries)
                # images behind the last text are keys of nobody
                before = image.cumsum()[~image][new]
                pictures = positions[image][: before[-1]]
                keys += [text + row * num_keys, pictures + row * num_keys]
                seen, rows = (each.tolist() for each in np.unique(before, return_counts=True))
                samples.append(
                    SampleRows(
                        queries=len(queries[-1]),
                        text_keys=len(text),
                        image_keys=len(pictures),
                        runs=tuple(map(Run, rows, seen)),
                        mask=_last_rows_of_causal(len(queries[-1]), len(text), is_image.device),
                    )
                )
    asking, asked = (torch.from_numpy(np.concatenate(each)).to(is_image.device) for each in (queries, keys))
    return TextRows(queries=asking, keys=asked, samples=tuple(samples)), longest


def _last_rows_of_causal(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor | None:
    if num_queries == num_keys:
        return None
    whole = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return whole.tril_(num_keys - num_queries)
