"""Classes that configuration is read into: frozen dataclasses whose annotations say what is allowed.

    @config_class
    class Batch:
        size: Annotated[int, Ge(1)] = 16
        \"\"\"Sequences of one step.\"\"\"

dst.common.config reads and checks them. It imports pydantic, which takes a fifth of a second; processes that only pass
such objects on, such as the compiler's workers, do not need it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, dataclass_transform

from annotated_types import Ge, Le

T = TypeVar("T")
RULES = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""pydantic's settings; one mapping that all config classes share"""

UNKNOWN_KEYS = "x-unknown-keys"
"""The key of a JSON schema that has the advice of UnknownKeys"""
ALSO_CALLED = "x-also-called"
"""The key of a JSON schema that has the name of AlsoCalled"""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def config_class(cls: type[T]) -> type[T]:
    """A frozen dataclass that dst.common.config reads strictly: no "1" for 1, no true for 1, no unknown key, no NaN.

    The string literal under a field documents it. A choice of numbers is an int with a range: pydantic takes true for
    the 1 of a Literal. An object that a program makes itself is not checked.
    """
    made = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = RULES  # type: ignore[attr-defined]
    return made


@dataclasses.dataclass(frozen=True, slots=True)
class Suggested:
    """In an annotation: values that editors offer, next to any other that the type admits."""

    values: tuple[str, ...]

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "examples": [*self.values]}


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownKeys:
    """In an annotation of a config class: what to do about an unknown key there, for its error."""

    advice: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), UNKNOWN_KEYS: self.advice}


@dataclasses.dataclass(frozen=True, slots=True)
class AlsoCalled:
    """In an annotation of a key: its name in another program, for the error about a key of that name."""

    name: str

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), ALSO_CALLED: self.name}


@dataclasses.dataclass(frozen=True, slots=True)
class Matches:
    """In an annotation of text: a regular expression for all of it, and what the error says is expected."""

    pattern: str
    expected: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError
        from pydantic_core.core_schema import no_info_after_validator_function

        def check(value: str) -> str:
            if re.fullmatch(self.pattern, value):
                return value
            raise PydanticCustomError("pattern", "{expected}", {"expected": self.expected})

        return no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^(?:{self.pattern})$"}


class _AllFinite:
    """In an annotation: the value has no infinite number or NaN at any depth, which JSON does not have."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core.core_schema import no_info_after_validator_function

        return no_info_after_validator_function(_all_finite, handler(source))


Positive = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
FreeKeys = Annotated[dict[str, Any], _AllFinite()]
"""Keys and values that somebody else defines; any JSON."""
FreeValue = Annotated[Any, _AllFinite()]


def _all_finite(value: Any) -> Any:
    if found := list(_infinite(value, ())):
        from pydantic_core import InitErrorDetails, ValidationError

        details = [InitErrorDetails(type="finite_number", loc=loc, input=bad) for loc, bad in found]
        raise ValidationError.from_exception_data("numbers", details)
    return value


def _infinite(value: Any, place: tuple[int | str, ...]) -> Iterator[tuple[tuple[int | str, ...], float]]:
    if isinstance(value, float) and not math.isfinite(value):
        yield place, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _infinite(each, (*place, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _infinite(each, (*place, index))
