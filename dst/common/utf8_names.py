"""Names of files that are not UTF-8, which records, manifests, indexes and the safetensors library cannot hold."""

from __future__ import annotations

from pathlib import Path


def name_problem(path: Path) -> str | None:
    """Why a path cannot be used; None if it can. A relative path is looked at together with the folders above it."""
    text = str(path.absolute())
    shown = text.encode("utf-8", "backslashreplace").decode()
    if shown == text:
        return None
    return f"{shown}: the name is not UTF-8; rename it, such as with convmv -f latin1 -t utf8"
