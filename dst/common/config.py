"""Read a YAML file into a tree of dataclasses, and report everything that is wrong with it at once.

Rule: a problem is one line: dotted path, what was got, what was wanted. An unknown key names its nearest match. Field
documentation is the string literal under each field; `field_docs` reads it for `init` and the docs.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from dst.common.suggest import nearest
from dst.errors import ConfigError

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises ConfigError with line and column for broken YAML, a repeated key, or a document that is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError([f"{path}: cannot be read ({why}); wanted a YAML file"]) from None
    try:
        value = yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([f"{path}{place}: broken YAML: {error.problem}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: broken YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(value, dict):
        raise ConfigError([f"{path}: holds {_kind(value)}; wanted keys such as `tokenizer:` and `datasets:`"])
    return value


def override(tree: dict[str, Any], settings: Iterable[str]) -> None:
    """Apply `a.b=value` settings in place; values are YAML. List entries go by position or by their `name`.

    Raises ConfigError for a setting without "=" or a path through something that has no keys.
    """
    problems = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.strip().split(".")
        try:
            if not equals or not all(keys):
                raise ValueError("wanted the form a.b=value")
            node: Any = tree
            for key in keys[:-1]:
                node = _child(node, key)
            _assign(node, keys[-1], yaml.load(text, Loader=_UniqueKeys))
        except yaml.MarkedYAMLError as error:
            problems.append(f"--set {setting}: broken YAML: {error.problem}")
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            problems.append(f"--set {setting}: {' '.join(str(error).split())}")
    if problems:
        raise ConfigError(problems)


def build(cls: type[T], value: object, where: str = "") -> tuple[T | None, list[str]]:
    """Make a dataclass from parsed YAML, and say what is wrong.

    Unknown keys are problems that leave the rest to be looked at; after any other there is None.
    """
    problems = _Problems()
    made = _dataclass(cls, value, where, problems)
    return (None if problems.spoil else made), list(problems)


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the sentence under it in the class body."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


class _Problems(list[str]):
    """unknown: how many of them are unknown keys."""

    unknown = 0

    @property
    def spoil(self) -> bool:
        """Whether a value is missing or cannot be had."""
        return len(self) > self.unknown


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, except that a repeated key is an error and `1e-3` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _whole_number(loader: _UniqueKeys, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if not -(2**63) <= value < 2**63:
        raise yaml.MarkedYAMLError(problem=f"{node.value} takes more than 64 bits", problem_mark=node.start_mark)
    return value


# What is read here is written to JSON, which other programs read: most of them know no larger numbers.
_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _whole_number)

# YAML 1.1 wants a dot and a sign there, so it reads 1e-3 as text.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _dataclass(cls: type, value: object, where: str, problems: _Problems) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{where or 'the file'}: got {_kind(value)}; wanted keys")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            problems.append(f"{_join(where, key)}: unknown key{nearest(str(key), fields) or _known(fields)}")
            problems.unknown += 1
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _value(hints[name], value[name], _join(where, name), problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{_join(where, name)}: missing")
    return None if problems.spoil else cls(**arguments)


def _value(kind: Any, value: object, where: str, problems: _Problems) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, value, where, problems)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):  # True is no 1
            hint = nearest(value, map(str, arguments)) if isinstance(value, str) else ""
            problems.append(f"{where}: got {value!r}; wanted one of {', '.join(map(str, arguments))}{hint}")
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where, problems)
    if origin is tuple:
        if not isinstance(value, list):
            problems.append(f"{where}: got {_kind(value)}; wanted a list")
            return ()
        return tuple(_value(arguments[0], item, f"{where}.{index}", problems) for index, item in enumerate(value))
    if origin in (dict, Mapping) or kind is dict or origin is typing.get_origin(Mapping[str, Any]):
        if not isinstance(value, dict):
            problems.append(f"{where}: got {_kind(value)}; wanted keys")
            return {}
        _check_finite(value, where, problems)
        return value
    return _scalar(kind, value, where, problems)


def _union(kinds: Sequence[Any], value: object, where: str, problems: _Problems) -> Any:
    if value is None and type(None) in kinds:
        return None
    rest = [kind for kind in kinds if kind is not type(None)]
    for kind in rest:
        attempt = _Problems()
        result = _value(kind, value, where, attempt)
        if not attempt or len(rest) == 1:
            problems += attempt
            problems.unknown += attempt.unknown
            return result
    problems.append(f"{where}: got {_kind(value)} {value!r}; wanted {' or '.join(map(_wanted, rest))}")
    return None


def _scalar(kind: Any, value: object, where: str, problems: list[str]) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    if kind is Any or (kind is float and isinstance(value, float)):
        _check_finite(value, where, problems)
    elif not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where}: got {_kind(value)} {value!r}; wanted {_wanted(kind)}")
    return value


def _check_finite(value: object, where: str, problems: list[str]) -> None:
    """Where keys are free, too: what is read here is written to JSON, which has no other numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        problems.append(f"{where}: got {value}; wanted a finite number")
    elif isinstance(value, dict):
        for key, each in value.items():
            _check_finite(each, _join(where, key), problems)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_finite(each, f"{where}.{index}", problems)


def _child(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(key, {})
    if isinstance(node, list):
        return node[_position(node, key)]
    raise ValueError(f"{key}: stands below {_kind(node)}, which has no keys")


def _assign(node: Any, key: str, value: Any) -> None:
    if isinstance(node, list):
        node[_position(node, key)] = value
    elif isinstance(node, dict):
        node[key] = value
    else:
        raise ValueError(f"{key}: stands below {_kind(node)}, which has no keys")


def _position(node: list[Any], key: str) -> int:
    if key.isdigit() and int(key) < len(node):
        return int(key)
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if key in names:
        return names.index(key)
    known = [name for name in names if isinstance(name, str)]
    raise ValueError(f"no entry {key!r}; there are {', '.join(known) or len(node)}{nearest(key, known)}")


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _known(fields: Iterable[str]) -> str:
    return f"; known are {', '.join(fields)}"


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))


def _kind(value: object) -> str:
    names = {dict: "keys", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
