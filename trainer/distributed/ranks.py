"""The processes of a run and what they exchange.

Rule: what one rank observes and all must act on (a failed read, a NaN, a signal) goes through here. So every rank
raises the same error or makes the same step, and none waits for a rank that has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from trainer.distributed.heartbeats import Heartbeats

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all processes of the run."""

    rank: int
    world_size: int
    device: torch.device
    heartbeats: Heartbeats | None = None
    """None for a run of one process"""

    def begin_step(self, step: int) -> None:
        """Others name this step if this rank is lost."""
        if self.heartbeats is not None:
            self.heartbeats.step = step

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
