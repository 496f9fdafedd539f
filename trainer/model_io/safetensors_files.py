"""Weights as safetensors files, named as in transformers: one file, or several and an index.

The rule: tensors are written one by one, so that memory holds the model and at most one file's worth more. Nothing is
unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from trainer.errors import TrainError
from trainer.model_io.record import INDEX, SINGLE

_AGAIN = "copy it again, or export the model again"
_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def write_weights(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], *, max_bytes: int) -> list[str]:
    """Write named tensors in files of about `max_bytes` bytes; returns the names of all files written."""
    written: list[Path] = []
    waiting: dict[str, torch.Tensor] = {}
    file_numbers: dict[str, int] = {}
    waiting_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal waiting_bytes
        written.append(folder / f".part-{len(written):05d}")
        save_tensors(waiting, written[-1])
        waiting.clear()
        waiting_bytes = 0

    for name, tensor in tensors:
        if waiting and waiting_bytes + tensor.nbytes > max_bytes:
            flush()
        waiting[name] = tensor.detach().cpu().contiguous()
        file_numbers[name] = len(written)
        waiting_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    flush()
    if len(written) == 1:
        written[0].rename(folder / SINGLE)
        return [SINGLE]
    names = [f"model-{number:05d}-of-{len(written):05d}.safetensors" for number in range(1, len(written) + 1)]
    for path, name in zip(written, names, strict=True):
        path.rename(folder / name)
    index = {
        "metadata": {"total_size": total_bytes},
        "weight_map": {name: names[number] for name, number in sorted(file_numbers.items())},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file and flush it to disk, with the default mode of new files; the library sets 0600."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), str(path), metadata={"format": "pt"})
    path.chmod(mode)
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
            self._files = _read_index(folder / INDEX)
        else:
            self._files = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._files.keys()

    def read(self, name: str, *, shape: Sequence[int]) -> torch.Tensor:
        """The tensor of this name and shape. Raises TrainError if it is missing, damaged or of another shape."""
        file = self._files.get(name)
        if file is None:
            raise TrainError(f"{self.folder}: the weights lack {name}; {_AGAIN}")
        try:
            tensor: torch.Tensor = self._open(file).get_tensor(name)
        except SafetensorError as error:
            raise _damaged(self.folder / file, str(error)) from None
        if tensor.shape != torch.Size(shape):
            raise TrainError(f"{self.folder}: {name} is {list(tensor.shape)}, expected {list(shape)}; {_AGAIN}")
        return tensor

    def _open(self, file: str) -> Any:  # a safe_open, whose methods are declared without types
        if file not in self._opened:
            try:
                self._opened[file] = safe_open(str(self.folder / file), framework="pt")
            except FileNotFoundError:
                raise TrainError(f"{self.folder / file}: is missing; {_AGAIN}") from None
            except (OSError, SafetensorError) as error:
                raise _damaged(self.folder / file, str(error)) from None
        return self._opened[file]


def _read_index(path: Path) -> dict[str, str]:
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        invalid = [file for file in files.values() if not _NAME.fullmatch(file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if invalid:
        raise _damaged(path, f"it names {invalid[0]!r}, which is not a file of weights")
    return files


def _damaged(path: Path, why: str) -> TrainError:
    return TrainError(f"{path}: is damaged ({why}); {_AGAIN}")
