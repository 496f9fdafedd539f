"""The checks of a loader's settings."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from shards.errors import ShardError


def check_layout(batch_size: int, rank: int, world_size: int) -> None:
    """Raises ShardError if this rank has no part of a batch, or the ranks have parts of different sizes."""
    if rank >= world_size:
        raise ShardError(f"loader: rank {rank} of {world_size} ranks; expected a rank from 0 to below their number")
    if batch_size % world_size:
        raise ShardError(
            f"loader: batch_size {batch_size} cannot be shared by {world_size} ranks; expected a multiple of "
            f"{world_size}"
        )


def whole_number(name: str, value: object, least: int | None) -> int:
    """The value as Python's own integer: numpy's are written otherwise where a key is made of them.

    Raises ShardError if it is not a whole number, or less than the least.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # it raises TypeError for what is not an integer
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or (least is not None and number < least):
        expected = "a whole number" if least is None else f"a whole number from {least}"
        raise ShardError(f"loader: {name} is {value!r}; expected {expected}")
    return number


def check_choice(name: str, got: str, choices: Sequence[str]) -> None:
    """Raises ShardError if the value is not one of the choices."""
    if got not in choices:
        raise ShardError(f"loader: {name} is {got!r}; expected one of {', '.join(choices)}")
