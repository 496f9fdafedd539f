"""The processes of a run and what they exchange.

Rule: what one rank observes and all must act on (a failed read, a NaN, a signal) goes through here. So every rank
raises the same error or makes the same step, and none waits for a rank that has ended.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in float64 where the device has it."""
        if self.world_size == 1:
            return [float(value) for value in values]
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        sums = torch.tensor(values, dtype=dtype, device=self.device)
        torch.distributed.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, on every rank. They are pickled; all come from this run's own processes."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values


def world_size_of(environment: Mapping[str, str]) -> int | None:
    """The number of ranks, if a launcher started this process; else None."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    return None


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
