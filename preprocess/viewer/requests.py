"""What requests may ask for: values of queries, checked, and links that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from urllib.parse import urlencode

from preprocess.errors import ConfigError
from preprocess.viewer.attention import ATTENTION_KINDS, AttentionKind
from preprocess.viewer.rejects import RejectFilters
from preprocess.viewer.selection import ORDERS, Filters
from preprocess.viewer.sequences import PackedSettings

_LONGEST_VALUE = 1000
_LARGEST_NUMBER = 2**53


def number_of(query: Mapping[str, str], name: str, default: int | None = None) -> int | None:
    """A whole number from 0. Raises ConfigError for anything else."""
    text = query.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or int(text[:20]) > _LARGEST_NUMBER:
        raise ConfigError([f"{name}: got {text[:40]!r}; expected a whole number from 0"])
    return int(text)


def filters_of(query: Mapping[str, str]) -> Filters:
    """Raises ConfigError for values that no filter has."""
    named = query.get("order") or "build"
    order = next((known for known in ORDERS if known == named), None)
    if order is None:
        raise ConfigError([f"order: got {named[:40]!r}; expected one of {', '.join(ORDERS)}"])
    return Filters(
        dataset=_text(query, "dataset"),
        split=_text(query, "split"),
        min_images=number_of(query, "min_images") or 0,
        max_images=number_of(query, "max_images"),
        min_length=number_of(query, "min_length") or 0,
        max_length=number_of(query, "max_length"),
        min_records=number_of(query, "min_records") or 0,
        note=_text(query, "note"),
        text=_text(query, "text"),
        order=order,
        seed=number_of(query, "seed") or 0,
    )


def reject_filters_of(query: Mapping[str, str]) -> RejectFilters:
    """Raises ConfigError for values that no filter has."""
    return RejectFilters(**{field.name: _text(query, field.name) for field in fields(RejectFilters)})


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSequences:
    """cursor: the first sequence of the page; chosen: the one whose attention is drawn; token: of it.

    sample: a sample whose sequence is looked for instead of `cursor`.
    """

    cursor: int
    chosen: int | None
    sample: int | None
    token: int
    kind: AttentionKind


def sequences_of(query: Mapping[str, str]) -> AskedSequences:
    """Raises ConfigError."""
    named = query.get("kind") or "mmca"
    kind = next((known for known in ATTENTION_KINDS if known == named), None)
    if kind is None:
        raise ConfigError([f"kind: got {named[:40]!r}; expected {' or '.join(ATTENTION_KINDS)}"])
    return AskedSequences(
        cursor=number_of(query, "cursor") or 0,
        chosen=number_of(query, "chosen"),
        sample=number_of(query, "sample"),
        token=number_of(query, "token") or 0,
        kind=kind,
    )


def packed_settings_of(query: Mapping[str, str]) -> PackedSettings:
    """Raises ConfigError."""
    return PackedSettings(
        split=_text(query, "split") or "train",
        max_length=number_of(query, "max_length") or 0,
        max_images=number_of(query, "max_images"),
        seed=number_of(query, "seed") or 0,
    )


def query_of(values: Filters | RejectFilters | PackedSettings) -> dict[str, object]:
    """Those of the values that are set."""
    defaults = type(values)()
    named = {field.name: getattr(values, field.name) for field in fields(values)}
    return {name: value for name, value in named.items() if value != getattr(defaults, name)}


def link(path: str, values: Filters | RejectFilters | PackedSettings, **places: object) -> str:
    """A path with the values that are set, and places in the list."""
    query = urlencode(query_of(values) | {name: value for name, value in places.items() if value is not None})
    return f"{path}?{query}" if query else path


def _text(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "")
    if len(text) > _LONGEST_VALUE:
        raise ConfigError([f"{name}: got {len(text):,} characters; expected at most {_LONGEST_VALUE:,}"])
    return text
