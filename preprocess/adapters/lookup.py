"""Adapters by name: dsvl's own, and those of other packages (dst.common.extensions, docs/extending.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dst.common.extensions import (
    ExtensionOrigin,
    ExtensionPoint,
    failure,
    load,
    origin,
    wrong_object,
)
from preprocess.adapters.base import Adapter, Layout, Option, Request
from preprocess.adapters.parsing.splits import held_out_files, with_splits_of_files
from preprocess.adapters.registry import ADAPTERS
from preprocess.conversation import Conversation, Records, Reject
from preprocess.errors import ConfigError, DataError, RejectError

POINT = ExtensionPoint(group="dsvl.adapters", what="adapter", built_in=ADAPTERS.keys(), attribute="ADAPTER")


def find_adapter(name: str, where: str = "adapter") -> Adapter:
    """The adapter with this name; an extension is imported.

    where: the dotted path of the name, for errors. Raises ConfigError if there is none, or what is there is none.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    found = load(POINT, name, where)
    if not isinstance(found, Adapter):
        hint = ", which has the function as its `read`" if callable(found) else ""
        expected = f"an Adapter of preprocess.adapters.base{hint}"
        raise ConfigError([f"{where}: {name}: {wrong_object(found, expected)}"])
    if problems := _problems(found):
        raise ConfigError([f"{where}: {name}: {problem}" for problem in problems])
    return found


def adapter_origin(name: str, where: str = "adapter") -> ExtensionOrigin | None:
    """Where the code of an extension came from; None for an adapter of dsvl. Raises as `find_adapter` does."""
    return None if name in ADAPTERS else origin(POINT, name, where)


def read_records(name: str, request: Request) -> Records:
    """The conversations and rejects of a dataset, as the adapter yields them.

    A conversation without an official split has the one that the name of its annotation file states, if that is val or
    test. Raises DataError if a whole file cannot be used, or if the code of an extension fails.
    """
    adapter = find_adapter(name)
    records = adapter.read(request) if name in ADAPTERS else _fenced(name, adapter, request)
    held_out = held_out_files(map(request.source_file, request.annotations))
    return with_splits_of_files(records, held_out) if held_out else records


def _fenced(name: str, adapter: Adapter, request: Request) -> Iterator[Conversation | Reject]:
    """What an extension yields. A failure of its code is an error of one line, not a traceback of dsvl."""
    try:
        for item in adapter.read(request):
            if not isinstance(item, Conversation | Reject):
                expected = "a Conversation or a Reject of preprocess.conversation for every record"
                raise DataError(f"adapter {name}: it yields: {wrong_object(item, expected)}")
            yield item
    except (DataError, ConfigError, MemoryError, OSError):
        raise
    except RejectError as error:
        raise DataError(
            f"adapter {name}: it raised a reject ({error}); expected it to yield one, as build_or_reject of "
            "preprocess.adapters.parsing.fields does"
        ) from None
    except Exception as error:  # whatever somebody else's code raises
        raise DataError(f"adapter {name}: it failed: {failure(error)}; correct the adapter") from None


def _problems(adapter: Adapter) -> list[str]:
    """What is wrong with an Adapter of somebody else; a class does not check the types of its fields."""
    problems = []
    if not callable(adapter.read):
        problems.append(f"read: {wrong_object(adapter.read, 'a function of one Request')}")
    for field in ("annotations", "images"):
        patterns = getattr(adapter, field)
        if not isinstance(patterns, tuple) or not all(isinstance(pattern, str) for pattern in patterns):
            problems.append(f"{field}: got {patterns!r}; expected a tuple of patterns, such as ('photos.json',)")
    other_layouts: Any = adapter.other_layouts
    if not isinstance(other_layouts, tuple) or not all(isinstance(one, Layout) for one in other_layouts):
        problems.append("other_layouts: expected a tuple of Layout of preprocess.adapters.base")
    if isinstance(adapter.annotations, tuple) and not adapter.annotations:
        problems.append("annotations: got no pattern; expected at least one, such as ('photos.json',)")
    problems += [
        f"{field}: got {text!r}; expected text"
        for field in ("layout", "where", "licence")
        if not isinstance(text := getattr(adapter, field), str)
    ]
    keys: Any = adapter.keys
    if not isinstance(keys, frozenset) or not all(isinstance(key, str) for key in keys):
        problems.append(f"keys: got {keys!r}; expected a frozenset of names of keys")
    options: Any = adapter.options
    if not isinstance(options, Mapping) or not all(isinstance(option, Option) for option in options.values()):
        problems.append("options: expected a dict of name -> Option of preprocess.adapters.base")
    return problems
