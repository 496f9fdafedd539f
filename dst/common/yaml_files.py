"""YAML files and `--set a.b=value`, as JSON values.

PyYAML reads the text. Hand-written is what it does not do: it keeps the last of two equal keys, reads 1e-3 as text, and
turns dates and binary data into what JSON does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dst.common.suggest import nearest
from dst.errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises ConfigError with line and column for broken YAML, a repeated key, or a document that is not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError([f"{path}: cannot be read ({why}); expected a YAML file"]) from None
    try:
        value = yaml.load(text, Loader=_UniqueKeys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError([f"{path}{location}: broken YAML: {error.problem}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError([f"{path}: broken YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(value, dict):
        raise ConfigError([f"{path}: holds {kind_of(value)}; expected keys such as `tokenizer:` and `datasets:`"])
    return value


def override(tree: dict[str, Any], settings: Iterable[str]) -> None:
    """Apply `a.b=value` settings in place; values are YAML. List entries go by index or by their `name`.

    Raises ConfigError for a setting without "=" or a path through something that has no keys.
    """
    problems = []
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.strip().split(".")
        try:
            if not equals or not all(keys):
                raise ValueError("expected the form a.b=value")
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


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader with JSON's values alone: a repeated key is an error, `1e-3` a number, a date text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} occurs twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _whole_number(loader: _UniqueKeys, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if not -(2**63) <= value < 2**63:
        raise yaml.MarkedYAMLError(problem=f"{node.value} takes more than 64 bits", problem_mark=node.start_mark)
    return value


def _text(loader: _UniqueKeys, node: yaml.ScalarNode) -> str:
    value: str = loader.construct_scalar(node)
    if re.search("[\ud800-\udfff]", value):
        raise yaml.MarkedYAMLError(problem=f"{value!r} is half of a character", problem_mark=node.start_mark)
    return value


def _no_json(loader: _UniqueKeys, node: yaml.Node) -> None:
    raise yaml.MarkedYAMLError(problem=f"{node.tag} is not a JSON value", problem_mark=node.start_mark)


# What is read here is written to JSON, which other programs read: most of them know no larger numbers.
_UniqueKeys.add_constructor("tag:yaml.org,2002:int", _whole_number)
_UniqueKeys.add_constructor("tag:yaml.org,2002:str", _text)
_UniqueKeys.add_constructor("tag:yaml.org,2002:timestamp", _text)
for _tag in ("binary", "set", "omap", "pairs"):
    _UniqueKeys.add_constructor(f"tag:yaml.org,2002:{_tag}", _no_json)

# YAML 1.1 wants a dot and a sign there, so it reads 1e-3 as text.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _child(node: Any, key: str) -> Any:
    if isinstance(node, dict):
        return node.setdefault(key, {})
    if isinstance(node, list):
        return node[_index(node, key)]
    raise ValueError(f"{key}: is below {kind_of(node)}, which has no keys")


def _assign(node: Any, key: str, value: Any) -> None:
    if isinstance(node, list):
        node[_index(node, key)] = value
    elif isinstance(node, dict):
        node[key] = value
    else:
        raise ValueError(f"{key}: is below {kind_of(node)}, which has no keys")


def _index(node: list[Any], key: str) -> int:
    if key.isdigit() and int(key) < len(node):
        return int(key)
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in node]
    if key in names:
        return names.index(key)
    known = [name for name in names if isinstance(name, str)]
    raise ValueError(f"no entry {key!r}; there are {', '.join(known) or len(node)}{nearest(key, known)}")


def kind_of(value: object) -> str:
    """What a value is, in the words of YAML."""
    names = {dict: "keys", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
