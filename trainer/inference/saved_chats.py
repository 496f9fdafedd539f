"""Conversations with a model as lines of a file that the compiler's chat adapter reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.inference.conversation import Exchange, messages_of


def record_of(exchanges: Sequence[Exchange], folder: Path) -> dict[str, Any]:
    """The conversation as the chat adapter reads it. Paths of images in `folder` are relative to it."""
    messages = [dict(message) for message in messages_of(exchanges)]
    paths = iter([image_name(image.path, folder) for exchange in exchanges for image in exchange.images])
    for message in messages:
        if not isinstance(message["content"], str):
            message["content"] = [
                {**part, "path": next(paths)} if part["type"] == "image" else part for part in message["content"]
            ]
    return {"messages": messages}


def image_name(path: Path, folder: Path) -> str:
    """The path of an image in a file of `folder`: relative to it, or absolute if the image is elsewhere."""
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return (absolute.relative_to(root) if absolute.is_relative_to(root) else absolute).as_posix()


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add a record at the end of a file, on a line of its own. Raises OSError."""
    line = json.dumps(record, ensure_ascii=False).encode()
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line + b"\n")
