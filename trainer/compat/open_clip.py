"""Everything the trainer needs of open_clip that open_clip does not document. Run with 3.0.0 and 3.3.0.

names    `local-dir:FOLDER` and `hf-hub:ID` in addition to model names: open_clip.factory.parse_model_name
hub      the description of a model on the hub: open_clip.factory._get_hf_config
log      building a model without weights logs a warning on the root logger
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def description(name: str) -> Mapping[str, Any] | None:
    """open_clip_config.json of a `local-dir:` or `hf-hub:` name; None for the name of a built-in model."""
    from open_clip import factory

    schema, location = factory.parse_model_name(name)
    if schema == "local-dir":
        tree: Mapping[str, Any] = json.loads((Path(location) / "open_clip_config.json").read_text("utf-8"))
    elif schema == "hf-hub":
        tree = factory._get_hf_config(location)
    else:
        return None
    return tree


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings of models that are built without weights."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
