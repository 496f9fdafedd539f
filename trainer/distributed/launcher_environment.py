"""What a launcher tells the processes it starts, and the port on which they meet. Nothing here loads torch."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def world_size_of(environment: Mapping[str, str]) -> int | None:
    """The number of ranks, if a launcher started this process; else None."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    return None


def speaks_for_host(environment: Mapping[str, str], lost_rank: int = -1) -> bool:
    """Whether this process prints what all ranks know: one on each host does, the first that is not lost."""
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    first_is_lost = int(environment.get("RANK", "0")) - local_rank == lost_rank
    return local_rank == int(first_is_lost)


def check_devices(environment: Mapping[str, str], devices: int) -> list[str]:
    """Problems if a launcher started more ranks on this host than it has devices; the same on all its ranks."""
    # torchrun sets the first of these, DeepSpeed's launcher the second
    num_ranks = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1)
    if num_ranks <= devices:
        return []
    return [f"--num-gpus: {num_ranks} ranks were started on a host with {devices} devices; expected at most {devices}"]


def become_single_rank() -> None:
    """Set the environment of a run with one rank, as a launcher would. Port 0: torch listens on any free port."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port for a rank to listen on. On Linux no other program gets it in this block.

    The first rank listens only after seconds of imports, so the port stays bound until then, at all addresses as torch
    will listen: a port that is free at one may be taken by a connection from another. torch can still listen on it,
    since both sockets set SO_REUSEADDR and this one does not listen. On other systems a socket that is bound but does
    not listen could take the ranks' connections; there the port was free when it was chosen, and no more.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port
