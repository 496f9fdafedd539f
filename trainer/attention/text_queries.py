"""Layouts of forwards whose queries are text alone, at any positions of rows that a store of keys and values holds.

Rule: the queries' own keys are in the store, at their positions, before they attend. Keys of images may be there long
before, since under MMCA they depend on no text.

Shapes: B rows, K keys, Q queries.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from trainer.attention.layout import MASKED_QUERIES, AttentionLayout, StepMasks, TextRows, rows_of_sample


def step_layout(is_image_BK: torch.Tensor, queries_BQ: torch.Tensor) -> AttentionLayout:
    """For a few queries in each row. queries: their positions in their row; keys behind them are not seen."""
    batch, num_keys = is_image_BK.shape
    seen_BQK = torch.arange(num_keys, device=is_image_BK.device) <= queries_BQ[..., None]
    masks = StepMasks(text=seen_BQK & ~is_image_BK[:, None], image=seen_BQK & is_image_BK[:, None])
    return AttentionLayout(
        batch=batch, num_queries=queries_BQ.shape[1], num_keys=num_keys, longest_sample=num_keys, plan=masks
    )


def prompt_layout(
    is_image: Sequence[npt.NDArray[np.bool_]],
    queries: Sequence[npt.NDArray[np.int64]],
    *,
    num_queries: int,
    num_keys: int,
    device: torch.device,
) -> AttentionLayout:
    """For consecutive text tokens of each row, the last that it shows to anybody so far.

    is_image: of the positions of each row, at least up to its last query. queries: their positions in the row, the last
    of its `num_queries` queries; those before them are padding, whose output is finite and means nothing.
    """
    batch = len(queries)
    if num_queries <= MASKED_QUERIES:
        positions_BQ = np.zeros((batch, num_queries), np.int64)
        is_image_BK = np.zeros((batch, num_keys), np.bool_)
        for row, positions in enumerate(queries):
            positions_BQ[row, num_queries - len(positions) :] = positions
            is_image_BK[row, : len(is_image[row])] = is_image[row][:num_keys]
        return step_layout(torch.from_numpy(is_image_BK).to(device), torch.from_numpy(positions_BQ).to(device))
    query_index, key_index, samples = [], [], []
    for row, positions in enumerate(queries):
        if len(positions):
            seen = is_image[row][: positions[-1] + 1]
            text = np.flatnonzero(~seen)
            sample = rows_of_sample(seen, text >= positions[0], (), device)
            query_index.append((row + 1) * num_queries - len(positions) + np.arange(len(positions)))
            key_index += [text + row * num_keys, np.flatnonzero(seen)[: sample.image_keys] + row * num_keys]
            samples.append(sample)
    queries_N, keys_N = (torch.from_numpy(np.concatenate(index)).to(device) for index in (query_index, key_index))
    return AttentionLayout(
        batch=batch,
        num_queries=num_queries,
        num_keys=num_keys,
        longest_sample=num_keys,
        plan=TextRows(queries=queries_N, keys=keys_N, samples=tuple(samples)),
    )
