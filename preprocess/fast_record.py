"""Records of which a build makes tens of millions.

Rule: nobody changes one; type checkers see a frozen dataclass with keyword-only fields. At run time it is not frozen,
since a frozen one takes three times as long to make, which is a quarter of the time of reading a dataset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, dataclass_transform

T = TypeVar("T")

if TYPE_CHECKING:

    @dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
    def fast_record(cls: type[T]) -> type[T]: ...

else:

    def fast_record(cls: type[T]) -> type[T]:
        """A dataclass with slots, equality and a hash by its fields."""
        return dataclass(slots=True, kw_only=True, unsafe_hash=True)(cls)
