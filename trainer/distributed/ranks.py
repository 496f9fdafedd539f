"""The processes of a run and what they tell each other.

Rule: what one rank finds out and all must act on (a failed read, a NaN, a signal) goes through here, so that every rank
raises the same error or makes the same step, and none waits for one that is gone.
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
    """This process among all of the run."""

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
        together = torch.tensor(values, dtype=dtype, device=self.device)
        torch.distributed.all_reduce(together)
        return [float(value) for value in together.tolist()]

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, on every rank. Values are pickled: they come from this run's own processes."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values


def world_size_of(environment: Mapping[str, str]) -> int | None:
    """Ranks of the run that a launcher started this process for; None if no launcher did."""
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return int(environment["WORLD_SIZE"])
    return None


def check_devices(environment: Mapping[str, str], devices: int) -> list[str]:
    """Problems between the ranks that a launcher started on this host and its devices, the same for all of them."""
    here = int(environment.get("LOCAL_WORLD_SIZE") or environment.get("LOCAL_SIZE") or 1)  # torchrun's, DeepSpeed's
    if here <= devices:
        return []
    return [f"--num-gpus: {here} ranks were started on a host with {devices} devices; wanted at most {devices}"]


def alone() -> None:
    """Make this process a run of one rank, as a launcher would. Port 0: torch binds any free port when it listens."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port of the loopback for a rank to listen on. Linux gives it to no other program until this block ends.

    Between the choice and the first rank's listening there are seconds of imports. So the port stays bound meanwhile;
    since both sockets set SO_REUSEADDR and this one does not listen, torch's can. Elsewhere a socket that is bound
    but does not listen could take the ranks' connections, so there the port is only one that was free.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port
