"""Which tokens are images and which samples they belong to, prepared once per forward for the attention of all layers.

The rule: everything that needs a loop or a number on the host is computed here, from small [B, T] tensors, preferably
on the CPU. The attention of a layer then only gathers, calls kernels and scatters; it never waits for the device.

Shapes: B batch (sequences), T key tokens, Q query tokens, the last of T (all, unless a KV cache holds earlier ones).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.flex import BlockMasks, block_masks
from trainer.attention.sample_rows import Run, SampleRows

MASKED_QUERIES = 16
"""Up to this many queries against cached keys use masks over the whole cache, since gathering would copy it"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TextRows:
    """Plan for training and prompts: gather the text rows, sample after sample; image rows are not touched.

    `queries` are indices into [B * Q], `keys` into [B * T]: of each sample its text, then its images.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    samples: tuple[SampleRows, ...]
    block_masks: BlockMasks | None = None
    """For FlexAttention, where a device needs it to attend to branches"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepMasks:
    """Plan for a few new tokens against a KV cache: the text and image keys that each query sees, bool [B, Q, T].

    The only text key that an image query sees is itself, so its output is its own value.
    """

    text: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionLayout:
    """What `model(..., attention_layout=...)` takes; `build_layout` makes it."""

    batch: int
    num_queries: int
    num_keys: int
    longest_sample: int
    """Positions from a sample's first token to its last, or to that of its longest branch"""
    plan: TextRows | StepMasks

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> AttentionLayout:
        """The same layout with its tensors on `device`."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        plan = self.plan
        if isinstance(plan, StepMasks):
            return replace(self, plan=StepMasks(text=move(plan.text), image=move(plan.image)))
        samples = tuple(
            sample if sample.mask is None else replace(sample, mask=move(sample.mask)) for sample in plan.samples
        )
        keys = move(plan.keys)
        masks = None if plan.block_masks is None else block_masks(samples, keys)
        moved = replace(plan, queries=move(plan.queries), keys=keys, samples=samples, block_masks=masks)
        return replace(self, plan=moved)


def build_layout(
    is_image: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    branch_ids: torch.Tensor | None = None,
    *,
    num_queries: int | None = None,
    flex: bool | None = None,
) -> AttentionLayout:
    """Prepare the attention of one forward.

    is_image: bool [B, T], the positions of images, for all keys, those in a KV cache included. segment_ids: integers
    [B, T], 0 for padding, else the sample's number in its sequence (a 0/1 attention mask is a special case); None: no
    padding, one sample per sequence. branch_ids: integers [B, T], 1, 2, ... for the branches of a sample, which follow
    each other behind its common beginning, 0 for everything else; None: no branches. num_queries: how many of the last
    tokens are new; None: all. flex: attend to branches by FlexAttention; None: on CUDA.

    The result's tensors are on `is_image`'s device. Raises ValueError for shapes or types that do not match, for images
    in branches, and for branches with a KV cache.
    """
    if segment_ids is None:
        segment_ids = torch.ones_like(is_image, dtype=torch.int64)
    if is_image.dtype != torch.bool or is_image.dim() != 2:
        got = f"{is_image.dtype} {list(is_image.shape)}"
        raise ValueError(
            f"is_image is {got}; expected torch.bool [sequences, tokens], True where a token is part of an image"
        )
    for name, ids in (("segment_ids", segment_ids), ("branch_ids", branch_ids)):
        if ids is not None and (ids.shape != is_image.shape or ids.is_floating_point()):
            got = f"{ids.dtype} {list(ids.shape)}"
            raise ValueError(f"{name} is {got}; expected integers {list(is_image.shape)}, the shape of is_image")
    batch, num_keys = is_image.shape
    num_queries = num_keys if num_queries is None else num_queries
    if not 0 < num_queries <= num_keys:
        raise ValueError(f"num_queries is {num_queries}; expected 1 to {num_keys}, the number of tokens in is_image")
    if branch_ids is not None and not branch_ids.any():
        branch_ids = None
    if branch_ids is not None and num_queries < num_keys:
        raise ValueError(f"{num_queries} queries of {num_keys} keys with branches; expected no KV cache")
    plan: TextRows | StepMasks
    if num_queries < num_keys and num_queries <= MASKED_QUERIES:
        plan, longest = _step_masks(is_image, segment_ids, num_queries), num_keys
    else:
        plan, longest = _text_rows(is_image, segment_ids, branch_ids, num_queries)
        if branch_ids is not None and (is_image.is_cuda if flex is None else flex):
            plan = replace(plan, block_masks=block_masks(plan.samples, plan.keys))
    return AttentionLayout(batch=batch, num_queries=num_queries, num_keys=num_keys, longest_sample=longest, plan=plan)


def _step_masks(is_image: torch.Tensor, segment_ids: torch.Tensor, num_queries: int) -> StepMasks:
    """The masks, computed on the device, since generation makes a layout for every token."""
    num_keys = is_image.shape[1]
    keys = torch.arange(num_keys, device=is_image.device)
    queries = keys[num_keys - num_queries :]
    is_text = (~is_image) & (segment_ids != 0)
    same_sample = segment_ids[:, queries, None] == segment_ids[:, None, :]
    is_text_query = is_text[:, queries, None]
    seen = is_text_query & same_sample & (keys <= queries[:, None])
    itself = ~is_text_query & (keys == queries[:, None])
    return StepMasks(text=(seen & is_text[:, None, :]) | itself, image=seen & is_image[:, None, :])


def _text_rows(
    is_image: torch.Tensor, segment_ids: torch.Tensor, branch_ids: torch.Tensor | None, num_queries: int
) -> tuple[TextRows, int]:
    """The gathering plan, and the number of positions that the longest sample spans."""
    num_keys = is_image.shape[1]
    first_query = num_keys - num_queries
    all_branches = None if branch_ids is None else branch_ids.numpy(force=True)
    empty = np.zeros(0, dtype=np.int64)
    queries, keys, samples, longest = [empty], [empty], [], 0
    for row, (images, segments) in enumerate(
        zip(is_image.numpy(force=True), segment_ids.numpy(force=True), strict=True)
    ):
        for sample in np.unique(segments[segments != 0]):
            positions = np.flatnonzero(segments == sample)
            image = images[positions]
            branches = () if all_branches is None else _branch_lengths(all_branches[row, positions], image)
            longest = max(longest, int(positions[-1] - positions[0]) + 1 - sum(branches) + max(branches, default=0))
            text = positions[~image]
            new = text >= first_query
            if new.any():
                queries.append(text[new] - first_query + row * num_queries)
                sample_rows = rows_of_sample(image, new, branches, is_image.device)
                keys += [text + row * num_keys, positions[image][: sample_rows.image_keys] + row * num_keys]
                samples.append(sample_rows)
    query_index, key_index = (torch.from_numpy(np.concatenate(x)).to(is_image.device) for x in (queries, keys))
    return TextRows(queries=query_index, keys=key_index, samples=tuple(samples)), longest


def rows_of_sample(
    is_image: npt.NDArray[np.bool_], is_query: npt.NDArray[np.bool_], branches: tuple[int, ...], device: torch.device
) -> SampleRows:
    """How the text of a sample attends. is_image: of each of its positions. is_query: of its text, which is new."""
    num_before = is_image.cumsum()[~is_image][is_query]
    run_images, run_queries = (array.tolist() for array in np.unique(num_before, return_counts=True))
    return SampleRows(
        queries=len(num_before),
        text_keys=len(is_query),
        image_keys=int(num_before[-1]),  # no query sees the images after the last text
        runs=tuple(map(Run, run_queries, run_images)),
        mask=_last_rows_of_causal(len(num_before), len(is_query), device),
        branches=branches,
    )


def _branch_lengths(branches: npt.NDArray[Any], image: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    """Tokens of each branch of a sample. Raises ValueError unless they are 0, 1, 2, ... in order, without images."""
    steps = np.diff(branches, prepend=0)
    if not ((steps == 0) | (steps == 1)).all() or branches[0] != 0 or branches[image].any():
        raise ValueError("the branches of a sample are not 0, 1, 2, ... in order, or show images; expected a beginning")
    lengths: list[int] = np.bincount(branches)[1:].tolist()
    return tuple(lengths)


def _last_rows_of_causal(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor | None:
    """The causal mask of the last queries, bool [queries, keys]; None if all keys are queries."""
    if num_queries == num_keys:
        return None
    full = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return full.tril_(num_keys - num_queries)
