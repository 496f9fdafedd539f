"""What can be read: the list of adapters, and the search for their layouts below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from preprocess.adapters import ADAPTERS
from preprocess.config import Blend, Dataset, Limits, Split
from preprocess.errors import ConfigError
from preprocess.strict import field_docs

_DEPTH = 3
"""How far below the root a dataset's folder is looked for."""

_WITHOUT_LAYOUT = ("chat",)
"""Adapters whose patterns match any JSON file say nothing about what lies there."""


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
    from rich.text import Text

    from preprocess.terminal import results

    table = Table(show_lines=True)
    for title in ("adapter", "reads", "get it from", "licence", "options"):
        table.add_column(title, overflow="fold")
    for row in adapter_rows():
        files = f"{row['layout']}\nannotations: {', '.join(row['annotations'])}\nimages: {', '.join(row['images'])}"
        options = "\n".join(
            f"{name} ({_short(option['default'])}): {option['help']}" for name, option in row["options"].items()
        )
        table.add_row(*map(Text, (row["name"], files, row["where"], row["licence"], options)))
    results().print(table)


def write_blend(root: Path, out: Path) -> list[tuple[str, Path]]:
    """Write a commented blend file for the datasets found; returns their names and folders.

    Raises ConfigError if the root is no folder, nothing is found, or the file exists already.
    """
    if not root.is_dir():
        raise ConfigError([f"--root {root}: no such folder"])
    if out.exists():
        raise ConfigError([f"--out {out}: exists already; choose another name, so that your settings are not lost"])
    found = list(find_layouts(root))
    if not found:
        raise ConfigError(
            [f"--root {root}: no known dataset there or {_DEPTH} folders below; `dsvl-prep adapters` lists the layouts"]
        )
    out.write_text(_blend_text(found, out.parent), encoding="utf-8")
    return found


def find_layouts(root: Path) -> Iterator[tuple[str, Path]]:
    """(adapter, folder) for every layout whose annotation files lie in place; the same files count once."""
    seen: set[tuple[str, Path]] = set()
    for folder in _folders(root):
        for name, adapter in ADAPTERS.items():
            matches = [list(folder.glob(pattern)) for pattern in adapter.annotations]
            enough = all if adapter.joins else any
            files = {(name, path.resolve()) for found in matches for path in found}
            if name not in _WITHOUT_LAYOUT and enough(matches) and not files & seen:
                seen |= files
                yield name, folder


def _folders(root: Path) -> Iterator[Path]:
    """The root and the folders below it, in order; image folders with thousands of files are not walked."""
    level = [root]
    for _ in range(_DEPTH + 1):
        yield from level
        level = [
            Path(entry.path)
            for folder in level
            for entry in sorted(_entries(folder), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith(".")
        ]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _blend_text(found: list[tuple[str, Path]], base: Path) -> str:
    blend_docs, dataset_docs = field_docs(Blend), field_docs(Dataset)
    lines = [
        "# Which datasets, how much of each, with which template and tokenizer.",
        "# Every key that is left out keeps its default; docs/blend.md lists them all.",
        "",
        f"# {blend_docs['tokenizer']}",
        "tokenizer: path/of/your/tokenizer",
        f"# {blend_docs['template']}",
        f"template: {Blend.__dataclass_fields__['template'].default}",
        f"# {blend_docs['image_tokens']}",
        f"image_tokens: {Blend.__dataclass_fields__['image_tokens'].default}",
        "image:",
        "  store: original  # resized stores small JPEGs that train about ten times faster; then set size and fit",
        "  check: decode    # header is faster, for data already known good",
    ]
    for key, cls in (("limits", Limits), ("split", Split)):
        lines.append(f"{key}:")
        for name, text in field_docs(cls).items():
            value = 0.01 if name == "eval" else cls.__dataclass_fields__[name].default
            lines += [f"  # {text}", f"  {name}: {value}"]
    lines += ["", "# `dsvl-prep adapters` lists each adapter's options.", "datasets:"]
    used: set[str] = set()
    for adapter, folder in found:
        name, number = adapter, 2
        while name in used:
            name, number = f"{adapter}-{number}", number + 1
        used.add(name)
        spec = ADAPTERS[adapter]
        lines += [
            "",
            f"  # {spec.layout}",
            f"  # Licence: {spec.licence}",
            f"  - name: {name}",
            f"    adapter: {adapter}",
            f"    root: {os.path.relpath(folder, base)}",
            f"    samples: all  # {dataset_docs['samples']}" if len(used) == 1 else "    samples: all",
        ]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{len(value)} built in" if isinstance(value, list | tuple) else str(value)
