"""Layouts of forwards whose queries are text alone, at any positions of rows that a store of keys and values holds.

Rule: the queries' own keys are in the store, at their positions, before they attend. Keys of images may be there long
before, since under MMCA they depend on no text.

Shapes: B rows, K keys, Q queries.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

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


def prompt_layout(is_image_K: npt.NDArray[np.bool_], num_queries: int, device: torch.device) -> AttentionLayout:
    """For the last `num_queries` text tokens of one row whose last position is one of them."""
    text = np.flatnonzero(~is_image_K)
    if num_queries <= MASKED_QUERIES:
        queries_BQ = torch.from_numpy(text[-num_queries:]).to(device)[None]
        return step_layout(torch.from_numpy(is_image_K).to(device)[None], queries_BQ)
    is_query = np.arange(len(text)) >= len(text) - num_queries
    sample = rows_of_sample(is_image_K, is_query, (), device)
    keys = torch.from_numpy(np.concatenate([text, np.flatnonzero(is_image_K)[: sample.image_keys]])).to(device)
    plan = TextRows(queries=torch.arange(num_queries, device=device), keys=keys, samples=(sample,))
    num_keys = len(is_image_K)
    return AttentionLayout(batch=1, num_queries=num_queries, num_keys=num_keys, longest_sample=num_keys, plan=plan)
