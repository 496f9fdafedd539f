"""What a batch says of itself."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from shards.loader import Batch  # noqa: E402 - torch may be missing
from shards.loader.fields import FIELDS  # noqa: E402


def test_each_branch_counts_as_a_record_and_so_does_a_sample_without_branches() -> None:
    sequences = [
        [("three", [0, 0, 1, 2, 2, 3]), ("one", [0, 0, 0]), ("padding", [0])],
        [("two", [0, 1, 2]), ("two more", [0, 1, 1, 2]), ("one", [0, 0]), ("padding", [0])],
        [("padding", [0] * 10)],
    ]
    numbers = torch.tensor([[number for _, ids in sequence for number in ids] for sequence in sequences])
    nothing = {name: torch.zeros(0) for name in FIELDS}
    batch = Batch(
        **{**nothing, "branch_ids": numbers},
        stored_images=(),
        grids=(),
        samples=tuple(tuple(("mine", name) for name, _ in sequence[:-1]) for sequence in sequences),
        cursor=0,
    )
    assert batch.num_records == 3 + 1 + 2 + 2 + 1
