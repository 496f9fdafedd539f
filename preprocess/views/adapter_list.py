"""The list of adapters, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from preprocess.adapters.registry import ADAPTERS


def adapter_rows() -> Iterator[dict[str, Any]]:
    for name, adapter in ADAPTERS.items():
        yield {
            "name": name,
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


def print_adapters() -> None:
    from rich.table import Table

    from preprocess.terminal import cell, results

    table = Table(show_lines=True)
    for title in ("adapter", "reads", "get it from", "licence", "options"):
        table.add_column(title, overflow="fold")
    for row in adapter_rows():
        files = f"{row['layout']}\nannotations: {', '.join(row['annotations'])}\nimages: {', '.join(row['images'])}"
        options = "\n".join(
            f"{name} ({_short(option['default'])}): {option['help']}" for name, option in row["options"].items()
        )
        table.add_row(*map(cell, (row["name"], files, row["where"], row["licence"], options)))
    results().print(table)


def _short(value: Any) -> str:
    return f"{len(value)} built in" if isinstance(value, list | tuple) else str(value)
