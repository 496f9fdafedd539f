"""Other programs that iterate a loader of ours: torch's DataLoader, and ranks of torch.distributed.

Rule: what would give a batch twice, or leave the loader's state in a process that nobody asks, is refused in one line.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch.utils.data import get_worker_info

from shards.errors import ShardError


class IteratedHere:
    """What can only be iterated, in the process that made it, since its state is in that process."""

    def __getitem__(self, index: object) -> NoReturn:
        """Raises ShardError: torch's DataLoader asks so for samples of a data set."""
        raise ShardError(
            "loader: its batches have no numbers; expected `for batch in loader` without a torch DataLoader around it, "
            "or one over the samples, such as build['train'], and Loader(workers=N) to read ahead"
        )

    def __reduce__(self) -> NoReturn:
        """Raises ShardError, as where torch's DataLoader starts workers with spawn."""
        raise ShardError(
            "loader: cannot be sent to another process, such as a worker of a torch DataLoader; expected "
            "num_workers=0: Loader(workers=N) reads ahead itself"
        )


def refuse_workers_of_torch() -> None:
    """Raises ShardError in a worker of torch's DataLoader.

    Each of its workers would give every batch, and the loader's state would stay in a process that nobody asks.
    """
    guest = get_worker_info()
    if guest is not None:
        raise ShardError(
            f"loader: is iterated in worker {guest.id} of a torch DataLoader with num_workers={guest.num_workers}, "
            "where each worker would give every batch; expected num_workers=0: Loader(workers=N) reads ahead itself"
        )


def refuse_ranks_of_torch() -> None:
    """Raises ShardError in a process group of several ranks: each would train on all of every global batch."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    if ranks > 1:
        raise ShardError(
            f"loader: rank {rank} of {ranks} iterates a Loader made without ranks, so each rank would train on every "
            f"sequence; expected Loader(rank={rank}, world_size={ranks}), or world_size=1 if that is meant"
        )
