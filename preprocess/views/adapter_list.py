"""The list of adapters, dsvl's own and those that other distributions add, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dst.common.extensions import installed_names
from preprocess.adapters.lookup import POINT, adapter_origin, find_adapter
from preprocess.adapters.registry import ADAPTERS
from preprocess.errors import ConfigError


@dataclass(frozen=True, slots=True)
class AdapterList:
    """rows: one for each adapter. notes: a line for each extension that cannot be used."""

    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]


def list_adapters(names: Sequence[str] = ()) -> AdapterList:
    """dsvl's adapters, then the extensions that are installed, each by name; or only those with these names.

    Imports the extensions that it lists. A broken one is a note. If it is named, it raises ConfigError, as does an
    unknown name.
    """
    installed = None if names else installed_names(POINT)
    rows, problems = [], list(installed.notes) if installed else []
    for name in names or (*ADAPTERS, *(installed.names if installed else ())):
        where = "NAME" if names else f"entry point {name}"
        try:
            rows.append(_row(name, where))
        except ConfigError as error:
            problems += error.problems
    if problems and names:
        raise ConfigError(problems)
    return AdapterList(tuple(rows), tuple(problems))


def _row(name: str, where: str) -> dict[str, Any]:
    adapter, extension = find_adapter(name, where), adapter_origin(name, where)
    return {
        "name": name,
        "extension": extension and {"distribution": extension.distribution, "version": extension.version},
        "layout": adapter.layout,
        "annotations": list(adapter.annotations),
        "images": list(adapter.images),
        "where": adapter.where,
        "licence": adapter.licence,
        "options": {
            key: {"default": option.default, "choices": list(option.choices), "help": option.help}
            for key, option in adapter.options.items()
        },
    }


def print_adapters(rows: Sequence[dict[str, Any]]) -> None:
    from rich.table import Table

    from preprocess.terminal import cell, results

    table = Table(show_lines=True)
    for title in ("adapter", "reads", "get it from", "licence", "options"):
        table.add_column(title, overflow="fold")
    for row in rows:
        files = f"{row['layout']}\nannotations: {', '.join(row['annotations'])}\nimages: {', '.join(row['images'])}"
        options = "\n".join(
            f"{name} ({_short(option['default'])}): {option['help']}" for name, option in row["options"].items()
        )
        table.add_row(*map(cell, (_title(row), files, row["where"], row["licence"], options)))
    results().print(table)


def _title(row: dict[str, Any]) -> str:
    """The name, and for an extension the distribution that it comes from."""
    extension = row["extension"]
    if extension is None:
        return str(row["name"])
    release = f"{extension['distribution']} {extension['version']}" if extension["distribution"] else "not installed"
    return f"{row['name']}\n({release})"


def _short(value: Any) -> str:
    return f"{len(value)} built in" if isinstance(value, list | tuple) else str(value)
