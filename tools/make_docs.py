"""Write the reference pages that the code itself knows: docs/blend.md and docs/rejects.md.

    python tools/make_docs.py

The texts are the ones under the fields of preprocess/blend/config.py and in preprocess/conversation.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dst.common.config import field_docs
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.config import Blend, Dataset, Limits, ShardSize, Split
from preprocess.conversation import REASONS
from preprocess.images.prepare import ImagePolicy

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> content."""
    return {"blend.md": blend_page(), "rejects.md": rejects_page()}


def blend_page() -> str:
    parts = [
        "# blend.yaml",
        "Which datasets, how much of each, with which template, tokenizer and image policy. Unknown keys and wrong "
        "values are reported before anything is read, all at once, with the nearest known name. `--set a.b=value` "
        "changes any of them from the command line; a dataset goes by its name: `--set datasets.llava.concat=2`. "
        "Relative paths start at the file's own folder.",
        _table(Blend, skip=("datasets", "image", "limits", "split", "shard")),
    ]
    for title, cls in (("image", ImagePolicy), ("limits", Limits), ("split", Split), ("shard", ShardSize)):
        parts += [f"## {title}:", _table(cls)]
    parts += [
        "## datasets:",
        "A list, each with exactly one of `samples`, `epochs` and `weight`. Amounts decide how often an epoch of the "
        "blend draws from a dataset; everything is compiled, so changing them later takes seconds.",
        _table(Dataset),
        "## Adapter options",
        "\n".join(
            ["| option | default | | adapters |", "|---|---|---|---|"]
            + [
                f"| `{key}` | {default} | {text} | {', '.join(names)} |"
                for (key, default, text), names in sorted(_adapter_options().items())
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def rejects_page() -> str:
    rows = ["| reason | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in REASONS.items())]
    parts = [
        "# rejects.jsonl",
        "Every record that is not part of a sample is one line: `dataset`, `reason`, `file`, `record` (the record's "
        "id, or its number in the file) and `detail` (what was got and wanted). For every dataset, records read = "
        "records in samples + rejects. Above `limits.max_reject_share` the build fails; what is finished is kept, so a "
        "second run with another limit or mended data is quick.",
        "\n".join(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _adapter_options() -> dict[tuple[str, str, str], list[str]]:
    """(name, default, text) -> the adapters that have this option."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, adapter in ADAPTERS.items():
        for key, option in adapter.options.items():
            row = (key, _cell(option.default), f"{_choices(option.choices)}{option.help}")
            found.setdefault(row, []).append(name)
    return found


def _table(cls: Any, skip: tuple[str, ...] = ()) -> str:
    docs = field_docs(cls)
    rows = ["| key | default | |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in skip:
            rows.append(f"| `{field.name}` | {_default(field)} | {docs[field.name]} |")
    return "\n".join(rows)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _cell(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else ""


def _cell(value: Any) -> str:
    if value is None or value == ():
        return ""
    return f"{len(value)} built in" if isinstance(value, list | tuple) else f"`{value}`"


def _choices(values: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, values))}) " if values else ""


if __name__ == "__main__":
    main()
