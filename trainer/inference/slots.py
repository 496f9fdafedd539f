"""Keys and values of several sequences, each in a row of its own, which a decoder reads and extends together.

Rule: a row's keys are at its positions 0, 1, 2, ..., and everything behind them is finite, since attention multiplies
what it does not see by zero.

Shapes: R rows, B rows in use, K key-value heads, P positions that there is memory for, Q new tokens, D head width.
"""

# ruff: noqa: N803, N806, N815 - names end in their shape

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Keys and values of some tokens, [K, Q, D] of each layer."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def first(self, num_tokens: int) -> States:
        """The first tokens alone; views."""
        keys, values = (tuple(x[:, :num_tokens] for x in xs) for xs in (self.keys, self.values))
        return States(keys, values)

    def split(self, num_tokens: int) -> list[States]:
        """Pieces of this many tokens; copies, so that a piece does not keep the memory of the others."""
        if num_tokens == self.keys[0].shape[1]:
            return [self]
        keys, values = (
            [[x.clone() for x in torch.split(x, num_tokens, dim=1)] for x in xs] for xs in (self.keys, self.values)
        )
        return [States(k, v) for k, v in zip(zip(*keys, strict=True), zip(*values, strict=True), strict=True)]

    @staticmethod
    def joined(parts: Sequence[States]) -> States:
        """Tokens that follow each other."""
        if len(parts) == 1:
            return parts[0]
        keys = [torch.cat(tensors, dim=1) for tensors in zip(*(part.keys for part in parts), strict=True)]
        values = [torch.cat(tensors, dim=1) for tensors in zip(*(part.values for part in parts), strict=True)]
        return States(tuple(keys), tuple(values))


class Slots:
    """Memory for `num_rows` rows; it grows with the longest one, and is kept."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows, self._positions = num_rows, 0
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    @property
    def device(self) -> torch.device:
        """Of what was written; the CPU if nothing was."""
        return self._keys[0].device if self._keys else torch.device("cpu")

    def reserve(self, positions: int) -> None:
        """Have memory for this many positions in each row from the next use on."""
        if positions > self._positions:
            self._positions = max(positions, self._positions * 5 // 4, 64)

    def layer(self, index: int, key_KQD: torch.Tensor, value_KQD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [R, K, P, D] of a layer whose heads are like these."""
        if index == len(self._keys):
            self._keys.append(self._grown(key_KQD[None, :, :0]))
            self._values.append(self._grown(value_KQD[None, :, :0]))
        elif self._keys[index].shape[2] < self._positions:
            self._keys[index] = self._grown(self._keys[index])
            self._values[index] = self._grown(self._values[index])
        return self._keys[index], self._values[index]

    def put(self, row: int, positions: torch.Tensor | slice, states: States) -> None:
        """Write keys and values to positions of a row, a tensor [Q] or a range."""
        for index, (key_KQD, value_KQD) in enumerate(zip(states.keys, states.values, strict=True)):
            keys, values = self.layer(index, key_KQD, value_KQD)
            keys[row][:, positions] = key_KQD
            values[row][:, positions] = value_KQD

    def take(self, row: int, positions_Q: torch.Tensor) -> States:
        """Copies of what is at positions of a row."""
        keys, values = ([x[row].index_select(1, positions_Q) for x in xs] for xs in (self._keys, self._values))
        return States(tuple(keys), tuple(values))

    def move(self, source: Slots, from_row: int, row: int, length: int, *, start: int = 0) -> None:
        """Copy `length` positions of another row, from `start` on, to the beginning of `row`."""
        for index, (key_RKPD, value_RKPD) in enumerate(zip(source._keys, source._values, strict=True)):
            keys, values = self.layer(index, key_RKPD[0], value_RKPD[0])
            keys[row, :, :length] = key_RKPD[from_row, :, start : start + length]
            values[row, :, :length] = value_RKPD[from_row, :, start : start + length]

    def clear(self, row: int, length: int) -> None:
        """Forget a row. Nothing that is not finite stays behind."""
        for tensor in (*self._keys, *self._values):
            tensor[row, :, :length] = 0

    def _grown(self, old: torch.Tensor) -> torch.Tensor:
        new = old.new_zeros(self._num_rows, old.shape[1], self._positions, old.shape[3])
        if old.shape[2]:
            new[:, :, : old.shape[2]] = old
        return new


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PromptWrite:
    """One forward over new tokens of B consecutive rows, M in all. A store of trainer.compat.transformers.own_cache.

    Queries that are padding are not among the M, so what a layer computes of them is kept nowhere.
    """

    slots: Slots
    first_row: int
    batch: int
    """B"""
    rows_M: torch.Tensor
    """Of each token, its row, from 0 for the first of these"""
    queries_M: torch.Tensor
    """Of each token, its number among the row's queries"""
    positions_M: torch.Tensor
    """Where it is in its row"""
    num_before: int
    num_keys: int

    def update(self, layer: int, key_BKQD: torch.Tensor, value_BKQD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.slots.layer(layer, key_BKQD[0], value_BKQD[0])
        rows = slice(self.first_row, self.first_row + self.batch)
        keys, values = keys[rows, :, : self.num_keys], values[rows, :, : self.num_keys]
        keys[self.rows_M, :, self.positions_M] = key_BKQD[self.rows_M, :, self.queries_M]
        values[self.rows_M, :, self.positions_M] = value_BKQD[self.rows_M, :, self.queries_M]
        return keys, values


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StepWrite:
    """One forward over one new token in each of the first B rows. A store of trainer.compat.transformers.own_cache."""

    slots: Slots
    lengths_B: torch.Tensor
    """Where each row's token is"""
    num_keys: int

    @property
    def num_before(self) -> int:
        return self.num_keys - 1

    def update(self, layer: int, key_BKQD: torch.Tensor, value_BKQD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.slots.layer(layer, key_BKQD[0], value_BKQD[0])
        batch = len(self.lengths_B)
        rows_B = torch.arange(batch, device=self.lengths_B.device)
        keys[rows_B, :, self.lengths_B] = key_BKQD[:, :, 0]
        values[rows_B, :, self.lengths_B] = value_BKQD[:, :, 0]
        return keys[:batch, :, : self.num_keys], values[:batch, :, : self.num_keys]


class Collected:
    """One forward over one row without a past, whose keys and values are kept apart."""

    def __init__(self, num_tokens: int) -> None:
        self.num_before, self.num_keys = 0, num_tokens
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def update(self, layer: int, key_BKQD: torch.Tensor, value_BKQD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._keys.append(key_BKQD[0].contiguous())
        self._values.append(value_BKQD[0].contiguous())
        return key_BKQD, value_BKQD

    def states(self) -> States:
        return States(tuple(self._keys), tuple(self._values))
