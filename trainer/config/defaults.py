"""The default configuration as commented YAML, written from the fields and the sentences under them."""

from __future__ import annotations

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from dst.common.config import field_docs
from trainer.config.run import TrainConfig

_EXAMPLES: Mapping[str, object] = {
    "build": "build",
    "out": "run",
    "model.encoder.name": "ViT-L-14-336-quickgelu",
    "model.encoder.weights": "openai",
    "model.decoder.name": "path/of/your/decoder",
}
"""Values of fields that have no default, or none that would train."""

_WIDTH = 110


def default_yaml() -> str:
    """A file that load_config takes, with every field."""
    head = [
        "# A training run. Every key that is left out keeps the default shown here.",
        "# Change settings on the command line: dsvl-train run --config train.yaml --set zero.stage=3 --set seed=1",
    ]
    return "\n".join([*head, *_lines(TrainConfig, "", 0)]) + "\n"


def _lines(cls: type, where: str, depth: int) -> Iterator[str]:
    docs, hints = field_docs(cls), typing.get_type_hints(cls)
    indent = "  " * depth
    for field in dataclasses.fields(cls):
        path = f"{where}.{field.name}" if where else field.name
        if depth == 0:
            yield ""
        yield from _comment(docs[field.name], indent)
        nested = dataclass_in(hints[field.name])
        if nested is None:
            yield f"{indent}{field.name}: {_scalar(_value(field, path))}"
        elif _is_optional(hints[field.name]):
            yield f"{indent}{field.name}: null"
            yield f"{indent}# {field.name}:"
            yield from (f"{indent}# {line[len(indent) :]}" for line in _lines(nested, path, depth + 1))
        else:
            yield f"{indent}{field.name}:"
            yield from _lines(nested, path, depth + 1)


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, _WIDTH - len(indent))]


def _value(field: dataclasses.Field[Any], path: str) -> object:
    if path in _EXAMPLES:
        return _EXAMPLES[path]
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    assert field.default is not dataclasses.MISSING, f"{path}: has no default and no example"
    return field.default


def _scalar(value: object) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=2**30)
    return text.removesuffix("...\n").strip()


def dataclass_in(hint: Any) -> type | None:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind) and isinstance(kind, type)), None)


def _is_optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
