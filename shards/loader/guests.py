"""Other programs' processes that iterate a loader of ours."""

from __future__ import annotations

from torch.utils.data import get_worker_info

from shards.errors import ShardError


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
