"""Small results of earlier runs, as JSON with a digest: a damaged one is as none, so that its task runs again.

The digest also covers whose result it is, so that one that was exchanged with another is as none too, and files that
the result describes, as far as nothing else checks them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.files import owned_digest, replace_file

_PIECE = 1 << 24


def write_sealed(path: Path, value: Any, files: Sequence[Path] = (), *, owner: str | None = None) -> None:
    """owner: whose result it is, if the file's name does not say so."""
    text = json.dumps(value).encode()
    replace_file(path, text + b"\n" + _digest(owner or path.name, text, files).encode())


def read_sealed(path: Path, files: Sequence[Path] = (), *, owner: str | None = None) -> Any:
    """Raises OSError if a file is not there, and ValueError if one is damaged, or is another's."""
    text, _, digest = path.read_bytes().rpartition(b"\n")
    if _digest(owner or path.name, text, files).encode() != digest:
        raise ValueError(f"{path}: is damaged")
    return json.loads(text)


def _digest(owner: str, text: bytes, files: Sequence[Path]) -> str:
    digest = owned_digest(owner, text)
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()
