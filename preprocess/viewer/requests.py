"""What requests may ask for: values of queries, checked, and links that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from urllib.parse import urlencode

from preprocess.errors import ConfigError
from preprocess.viewer.rejects import RejectFilters
from preprocess.viewer.selection import ORDERS, Filters

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
        note=_text(query, "note"),
        text=_text(query, "text"),
        order=order,
        seed=number_of(query, "seed") or 0,
    )


def reject_filters_of(query: Mapping[str, str]) -> RejectFilters:
    """Raises ConfigError for values that no filter has."""
    return RejectFilters(**{field.name: _text(query, field.name) for field in fields(RejectFilters)})


def link(path: str, filters: Filters | RejectFilters, **places: object) -> str:
    """A path with the filters that are set, and places in the list."""
    defaults = type(filters)()
    values = {field.name: getattr(filters, field.name) for field in fields(filters)}
    changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
    query = urlencode(changed | {name: value for name, value in places.items() if value is not None})
    return f"{path}?{query}" if query else path


def _text(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "")
    if len(text) > _LONGEST_VALUE:
        raise ConfigError([f"{name}: got {len(text):,} characters; expected at most {_LONGEST_VALUE:,}"])
    return text
