"""Slow, obvious twin of multi-modal causal attention: its definition in float64, one query row after the other."""

from __future__ import annotations

import torch


def mmca(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_image: torch.Tensor,
    segment_ids: torch.Tensor,
    scaling: float,
    branch_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """[B, H, Q, D] against [B, K, T, D], the last tokens being the queries; [B, Q, H, D]. Padding keeps its value.

    A branch sees no other branch of its sample.
    """
    groups = query.shape[1] // key.shape[1]
    query, key, value = query.double(), *(x.double().repeat_interleave(groups, dim=1) for x in (key, value))
    branch_ids = torch.zeros_like(segment_ids) if branch_ids is None else branch_ids
    num_queries, num_keys = query.shape[2], key.shape[2]
    rows = []
    for b in range(len(query)):
        for i in range(num_keys - num_queries, num_keys):
            if segment_ids[b, i] == 0 or is_image[b, i]:
                rows.append(value[b, :, i])
                continue
            sample = [
                j
                for j in range(i + 1)
                if segment_ids[b, j] == segment_ids[b, i] and branch_ids[b, j] in (0, branch_ids[b, i])
            ]
            out = torch.zeros_like(value[b, :, i])
            for seen in ([j for j in sample if not is_image[b, j]], [j for j in sample if is_image[b, j]]):
                if seen:
                    scores = (key[b][:, seen] * query[b, :, None, i - num_keys]).sum(-1) * scaling
                    out = out + (scores.softmax(-1)[..., None] * value[b][:, seen]).sum(1)
            rows.append(out)
    return torch.stack(rows).view(len(query), num_queries, *rows[0].shape)
