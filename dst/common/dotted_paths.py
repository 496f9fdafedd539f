"""A tree of settings as dotted paths, to compare two of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted path -> JSON text of each value that is not an object with keys."""
    leaf_texts: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaf_texts |= leaves(value, f"{prefix}{key}.")
        else:
            leaf_texts[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return leaf_texts
