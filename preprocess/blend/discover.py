"""Find datasets below a folder by their layouts, and write a first blend file for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from dst.common.config import field_docs
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.config import Blend, Dataset, Limits, Split
from preprocess.errors import ConfigError

_DEPTH = 3
"""How many levels below the root are searched for a dataset's folder"""

_WITHOUT_LAYOUT = ("chat",)
"""Adapters whose patterns match any JSON file, so that a match means nothing"""


def write_blend(root: Path, out: Path) -> list[tuple[str, Path]]:
    """Write a commented blend file for the datasets found; returns their names and folders.

    Raises ConfigError if the root is not a folder, nothing is found, or the file exists already.
    """
    if not root.is_dir():
        raise ConfigError([f"--root {root}: no such folder"])
    if out.exists():
        raise ConfigError([f"--out {out}: exists already; choose another name, so that your settings are not lost"])
    found = list(find_layouts(root))
    if not found:
        raise ConfigError(
            [
                f"--root {root}: no known dataset there or {_DEPTH} folders below; `dsvl-prep adapters` lists the "
                "layouts; your own files are not searched for: add them to a blend file as {name: mine, adapter: "
                f"chat, root: {root}, samples: all}}"
            ]
        )
    out.write_text(_blend_text(found, out.parent), encoding="utf-8")
    return found


def find_layouts(root: Path) -> Iterator[tuple[str, Path]]:
    """(adapter, folder) for every layout whose annotation files exist; the same files count once."""
    seen: set[tuple[str, Path]] = set()
    for folder in _folders(root):
        for name, adapter in ADAPTERS.items():
            if name in _WITHOUT_LAYOUT:
                continue
            matches = [list(folder.glob(pattern)) for pattern in adapter.annotations]
            enough = all if adapter.joins else any
            files = {(name, path.resolve()) for found in matches for path in found}
            if enough(matches) and not files & seen:
                seen |= files
                yield name, folder


def _folders(root: Path) -> Iterator[Path]:
    """The root and the folders below it, in order. A folder with many images costs one pass over its names."""
    level = [root]
    for _ in range(_DEPTH + 1):
        yield from level
        level = [below for folder in level for below in _folders_in(folder)]


def _folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; files are neither kept nor sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _blend_text(found: list[tuple[str, Path]], base: Path) -> str:
    blend_docs, dataset_docs = field_docs(Blend), field_docs(Dataset)
    lines = [
        "# Which datasets, how much of each, with which template and tokenizer.",
        "# A key that is not here has its default; docs/blend.md lists all keys.",
        "",
        f"# {blend_docs['tokenizer']}",
        "tokenizer: path/of/your/tokenizer",
        f"# {blend_docs['template']}",
        f"template: {Blend.__dataclass_fields__['template'].default}",
        f"# {blend_docs['image_tokens']}",
        f"image_tokens: {Blend.__dataclass_fields__['image_tokens'].default}",
        "image:",
        "  store: original  # resized stores small JPEGs, which load about ten times faster; then set size and fit",
        "  check: decode    # header is faster, for data that an earlier build checked",
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
            f"    root: {_scalar(os.path.relpath(folder, base))}",
            f"    samples: all  # {dataset_docs['samples']}" if len(used) == 1 else "    samples: all",
        ]
    return "\n".join(lines) + "\n"


def _scalar(text: str) -> str:
    """The text in quotes: YAML reads a folder name such as 2014 or yes as another type."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**30).rstrip("\n")
