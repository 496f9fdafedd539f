"""Weights as safetensors files, the way transformers names and reads them: one file, or several and an index.

The rule: tensors pass one by one, so that beside the model no more than one file's worth is ever in memory; and what is
read is exactly what the index and the files say, never unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainer.errors import TrainError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def write_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, max_bytes: int) -> list[str]:
    """Write named tensors, a new file from `max_bytes` on, and return the names of all files written."""
    parts: list[Path] = []
    held: dict[str, torch.Tensor] = {}
    places: dict[str, int] = {}
    held_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal held_bytes
        parts.append(folder / f".part-{len(parts):05d}")
        save_tensors(held, parts[-1])
        held.clear()
        held_bytes = 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > max_bytes:
            flush()
        held[name] = tensor.detach().cpu().contiguous()
        places[name] = len(parts)
        held_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(parts) == 1:
        parts[0].rename(folder / SINGLE)
        return [SINGLE]
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for part, name in zip(parts, names, strict=True):
        part.rename(folder / name)
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: names[place] for name, place in sorted(places.items())},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A safetensors file, on disk when this returns, with the rights of any new file: the library's are its owner's."""
    path.touch()
    rights = path.stat().st_mode
    save_file(dict(tensors), str(path), metadata={"format": "pt"})
    path.chmod(rights)
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class WeightFiles:
    """The tensors of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        """Raises TrainError if files are missing or damaged."""
        self.folder = folder
        self._opened: dict[str, Any] = {}
        if (folder / INDEX).is_file():
            self._places = _read_index(folder / INDEX)
        else:
            self._places = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> torch.Tensor:
        """Raises TrainError for a tensor that is not there."""
        file = self._places.get(name)
        if file is None:
            raise TrainError(f"{self.folder}: the weights lack {name}; export the model anew")
        try:
            tensor: torch.Tensor = self._open(file).get_tensor(name)
        except SafetensorError as error:
            raise _damaged(self.folder / file, str(error)) from None
        return tensor

    def _open(self, file: str) -> Any:  # a safe_open, whose methods are declared without types
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(str(self.folder / file), framework="pt")
            except FileNotFoundError:
                raise TrainError(f"{self.folder / file}: is missing; copy it again, or export the model anew") from None
            except (OSError, SafetensorError) as error:
                raise _damaged(self.folder / file, str(error)) from None
        return self._opened[file]


def _read_index(path: Path) -> dict[str, str]:
    try:
        places: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        strange = [file for file in places.values() if not _NAME.fullmatch(file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if strange:
        raise _damaged(path, f"it names {strange[0]!r}, no file of weights")
    return places


def _damaged(path: Path, why: str) -> TrainError:
    return TrainError(f"{path}: is damaged ({why}); copy it again, or export the model anew")
