"""Records of checkpoints and exports, edited so that their digest is true of them again; and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.model_io.digests import read_sealed, sealed


def edit_record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a dsvl.json or checkpoint.json and write it with a new digest."""
    tree = read_sealed(path)
    change(tree)
    path.write_bytes(sealed(tree, indent=1))


def without_digests(path: Path) -> None:
    """Make a record what an earlier release wrote: no digest of its own, and none of files but a tokenizer's."""
    tree = read_sealed(path)
    tree.pop("other_files", None)
    if path.name == "checkpoint.json":
        del tree["files"]
    for entry in tree.get("files", {}).values():
        del entry["xxh3_128"]
    path.write_text(json.dumps(tree))


def flip(path: Path, bit: int) -> None:
    """Flip a bit of a file, counted from its beginning."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
