"""Frozen dataclasses from JSON data, and back.

Rule: a key that is missing, has another type or is out of range raises FieldError with its dotted path. Unknown keys
are ignored, since a later release may add some (FORMAT.md, Versions).

    from_json(Geometry, {"size": 0, ...}, "config.image")   # FieldError: config.image.size: got 0; expected ...

A field's annotation is one of str, int, float, bool, None, Any, Literal, `X | None`, tuple[X, ...], Mapping[str, X], a
dataclass, a class with its own `from_json(value, path)`, or Annotated[X, AtLeast(...) or Keys(...) or OPTIONAL or
WHOLE].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from shards.errors import FieldError

T = TypeVar("T")

_Convert = Callable[[Any, str], Any]
_NAMES: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}
_MISSING = object()
_LONGEST_VALUE = 60

LARGEST = 1 << 53
"""The largest number that an int with AtLeast may be: other JSON readers round above it, and nothing counts so far"""


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The smallest number that an int may be; the largest is LARGEST."""

    smallest: int


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that a mapping must have; others are ignored."""

    names: tuple[str, ...]


OPTIONAL: Final = "a key that is left out where the field is None; such a field has the default None"
WHOLE: Final = "the whole object that the other fields are read from, and that the dataclass is written as"

Count = Annotated[int, AtLeast(0)]
PositiveCount = Annotated[int, AtLeast(1)]


def field_error(path: str, value: object, expected: str) -> FieldError:
    """The error for a value that the field at a dotted path cannot take."""
    got = "missing" if value is _MISSING else f"got {_shown(value)}"
    return FieldError(f"{path or 'the document'}: {got}; expected {expected}")


def from_json(kind: Callable[..., T], value: object, path: str = "") -> T:
    """The value as `kind`. `path`: its dotted path in the document, for errors. Raises FieldError."""
    converted: T = _converter(kind)(value, path)
    return converted


def to_json(value: Any) -> Any:
    """What `from_json` reads the value from: dataclasses as dicts, sequences as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        whole = _whole_field(type(value))
        if whole is not None:
            return getattr(value, whole)
        left_out = {name for name in _noted_fields(type(value), OPTIONAL) if getattr(value, name) is None}
        names = (field.name for field in dataclasses.fields(value) if field.name not in left_out)
        return {name: to_json(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    return value


@cache
def _converter(kind: Any) -> _Convert:
    if hasattr(kind, "from_json"):
        own: _Convert = kind.from_json
        return own
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1])
    if origin is Literal:
        return lambda value, path: _checked(value in arguments, value, path, kind)
    if origin in (Union, UnionType):
        (other,) = (argument for argument in arguments if argument is not NoneType)
        convert = _converter(other)
        return lambda value, path: None if value is None else convert(value, path)
    if origin is tuple:
        return _list(kind, arguments[0])
    if origin is Mapping:
        return _mapping(kind, arguments[1], None)
    if kind is float:
        return lambda value, path: float(_checked(type(value) in (int, float), value, path, kind))
    if kind is Any:
        return lambda value, path: value
    return lambda value, path: _checked(type(value) is kind, value, path, kind)


def _record(kind: Any) -> _Convert:
    hints = get_type_hints(kind, include_extras=True)
    whole = _whole_field(kind)
    optional = _noted_fields(kind, OPTIONAL)
    converters = {name: (hint, _converter(hint)) for name, hint in hints.items() if name != whole}

    def convert(value: Any, path: str) -> Any:
        _checked(isinstance(value, Mapping), value, path, kind)
        values = {} if whole is None else {whole: value}
        for name, (hint, convert_field) in converters.items():
            where = f"{path}.{name}" if path else name
            if name in optional and name not in value:
                continue
            _checked(name in value, _MISSING, where, hint)
            values[name] = convert_field(value[name], where)
        return kind(**values)

    return convert


def _annotated(kind: Any, note: object) -> _Convert:
    if isinstance(note, Keys):
        return _mapping(kind, get_args(kind)[1], note.names)
    if isinstance(note, AtLeast):
        smallest = note.smallest
        annotated = Annotated[kind, note]
        return lambda value, path: _checked_size(
            _checked(type(value) is int and value >= smallest, value, path, annotated), path
        )
    return _converter(kind)


def _list(kind: Any, item: Any) -> _Convert:
    convert = _converter(item)

    def convert_all(value: Any, path: str) -> Any:
        _checked(isinstance(value, list | tuple), value, path, kind)
        return tuple(convert(element, f"{path}.{number}") for number, element in enumerate(value))

    return convert_all


def _mapping(kind: Any, item: Any, required: tuple[str, ...] | None) -> _Convert:
    convert = _converter(item)

    def convert_all(value: Any, path: str) -> Any:
        _checked(isinstance(value, Mapping), value, path, kind)
        for name in required or ():
            _checked(name in value, _MISSING, f"{path}.{name}", item)
        return {name: convert(value[name], f"{path}.{name}") for name in (value if required is None else required)}

    return convert_all


def _checked(holds: bool, value: T, path: str, kind: Any) -> T:
    if not holds:
        raise field_error(path, value, _expected(kind))
    return value


def _checked_size(value: int, path: str) -> int:
    if value > LARGEST:
        raise field_error(path, value, f"at most {LARGEST} (2^53)")
    return value


def _expected(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        smallest = f" from {arguments[1].smallest} on" if isinstance(arguments[1], AtLeast) else ""
        return _expected(arguments[0]) + smallest
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, UnionType):
        return " or ".join(map(_expected, arguments))
    if origin is tuple or (isinstance(kind, type) and kind is not str and issubclass(kind, Sequence)):
        return "a list"
    return _NAMES.get(kind, "an object")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _whole_field(kind: Any) -> str | None:
    return next(iter(_noted_fields(kind, WHOLE)), None)


@cache
def _noted_fields(kind: Any, note: str) -> tuple[str, ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(name for name, hint in hints.items() if note in getattr(hint, "__metadata__", ()))
