"""FlexAttention (https://arxiv.org/abs/2412.05496) over gathered rows: for branches on CUDA, in one kernel each layer.

A mask is a rule over the numbers of a query and a key, and a table of the blocks in which it may hold. The table comes
from the lengths of samples and branches, so nothing of the size queries x keys is ever in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.sample_rows import SampleRows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys of a block"""

Table = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockMasks:
    """Which gathered text rows see which gathered text and image rows."""

    num_text: int
    num_image: int
    keys: torch.Tensor
    """int64 [num_text + num_image]: `TextRows.keys`, the text of all samples before the images of all"""
    text: BlockMask
    image: BlockMask | None
    """None without images"""


def flex_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scaling: float | None
) -> torch.Tensor:
    """[1, H, N, D] over [1, K, M, D]; 0 for a query that sees no key. Compiled on CUDA."""
    out: torch.Tensor = _attention(query.device.type)(
        query, key, value, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] > key.shape[1]
    )
    return out


def block_masks(samples: Sequence[SampleRows], keys: torch.Tensor) -> BlockMasks:
    """The masks, on the device of `TextRows.keys`, for samples whose text keys are their queries."""
    device = keys.device
    queries = [sample.queries for sample in samples]
    image_keys = [sample.image_keys for sample in samples]
    num_text, num_image = sum(queries), sum(image_keys)
    numbers = np.arange(len(samples))
    branches = [np.repeat(np.arange(len(sample.branches) + 1), sample.parts) for sample in samples]
    seen = [np.repeat(*np.array(sample.runs, np.int64).reshape(-1, 2).T[::-1]) for sample in samples]
    sample_of_text, branch, num_seen, sample_of_image, number_of_image = (
        torch.from_numpy(array.astype(np.int32)).to(device)
        for array in (
            np.repeat(numbers, queries),
            np.concatenate(branches),
            np.concatenate(seen),
            np.repeat(numbers, image_keys),
            np.concatenate([np.arange(count) for count in image_keys]),
        )
    )

    def sees_text(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        is_shown = (branch[key] == 0) | (branch[key] == branch[query])
        return (sample_of_text[query] == sample_of_text[key]) & is_shown & (query >= key)

    def sees_image(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (sample_of_text[query] == sample_of_image[key]) & (number_of_image[key] < num_seen[query])

    text_table, image_table = block_tables(samples)
    is_image = np.concatenate([np.repeat([False, True], pair) for pair in zip(queries, image_keys, strict=True)])
    order = torch.from_numpy(np.argsort(is_image, kind="stable")).to(device)
    return BlockMasks(
        num_text=num_text,
        num_image=num_image,
        keys=keys[order],
        text=_block_mask(text_table, sees_text, (num_text, num_text), device),
        image=_block_mask(image_table, sees_image, (num_text, num_image), device) if num_image else None,
    )


def block_tables(samples: Sequence[SampleRows]) -> tuple[Table, Table]:
    """The blocks [queries, keys] in which a text row may see a text row, and those in which it may see an image row."""
    num_text = sum(sample.queries for sample in samples)
    num_image = sum(sample.image_keys for sample in samples)
    text = np.zeros((_blocks(num_text), _blocks(num_text)), np.bool_)
    image = np.zeros((_blocks(num_text), _blocks(num_image)), np.bool_)
    start = image_start = 0
    for sample in samples:
        end, image_end = start + sample.queries, image_start + sample.image_keys
        ends = [*accumulate(sample.parts, initial=start)]
        beginning = _range(start, ends[1])
        for first, last in pairwise(ends):
            text[_range(first, last), _range(first, last)] = True
            text[_range(first, last), beginning] = True
        image[_range(start, end), _range(image_start, image_end)] = True
        start, image_start = end, image_end
    return np.tril(text), image


def _blocks(rows: int) -> int:
    return -(-rows // BLOCK)


def _range(first: int, last: int) -> slice:
    """The blocks of rows [first, last)."""
    return slice(first // BLOCK, _blocks(last) if last > first else first // BLOCK)


def _block_mask(table: Table, rule: Any, lengths: tuple[int, int], device: torch.device) -> BlockMask:
    from torch.nn.attention.flex_attention import BlockMask

    counts = torch.from_numpy(table.sum(1).astype(np.int32)).to(device)
    indices = torch.from_numpy(np.argsort(~table, axis=1, kind="stable").astype(np.int32)).to(device)
    return BlockMask.from_kv_blocks(
        counts[None, None], indices[None, None], BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=lengths
    )


@cache
def _attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention as attend

    return torch.compile(attend, dynamic=True) if device == "cuda" else attend
