"""Weights as safetensors files, named as in transformers: one file, or several and an index.

The rule: tensors are read and written one by one, so that memory holds one tensor whatever the size of the files.
Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shards.files import FULL, disk_named
from trainer.errors import TrainError
from trainer.model_io.digests import CheckedFiles, Digester, FileFacts, file_facts
from trainer.model_io.record import INDEX, SINGLE

_AGAIN = "copy it again, or export the model again"
_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def write_weights(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    max_bytes: int,
    dtype: torch.dtype | None = None,
    value: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> dict[str, FileFacts]:
    """Write named tensors in files of about `max_bytes` bytes; returns all files written, with the sha256 of weights.

    dtype: of floating-point tensors in the files; default: their own. value: what is written for a tensor, which may be
    on the meta device; called when the tensor's turn has come, once for each. Raises TrainError for NaN or infinity.
    """
    files: list[dict[str, torch.Tensor]] = [{}]
    sizes = [0]
    for name, tensor in tensors:
        size = tensor.numel() * _stored_dtype(tensor, dtype).itemsize
        if files[-1] and sizes[-1] + size > max_bytes:
            files.append({})
            sizes.append(0)
        files[-1][name] = tensor
        sizes[-1] += size
    if len(files) == 1:
        return {SINGLE: _write_file(folder / SINGLE, files[0], dtype, value)}
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    written = {name: _write_file(folder / name, held, dtype, value) for name, held in zip(names, files, strict=True)}
    numbers = {name: number for number, held in enumerate(files) for name in held}
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {name: names[number] for name, number in sorted(numbers.items())},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return {**written, INDEX: file_facts(folder / INDEX)}


def _stored_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _write_file(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None,
    value: Callable[[torch.Tensor], torch.Tensor],
) -> FileFacts:
    """Write a file tensor by tensor, with the bytes that safetensors' own writer makes; see its format page.

    https://github.com/huggingface/safetensors#format: the header's length, the header, then the tensors' bytes.
    """
    stored = {name: _stored_dtype(tensor, dtype) for name, tensor in tensors.items()}
    names = sorted(tensors, key=lambda name: (-stored[name].itemsize, name))  # largest types first, which aligns all
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * stored[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPES[stored[name]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digester = Digester(sha256=True)
    with path.open("wb") as file:

        def write(content: bytes | memoryview) -> None:
            digester.update(content)
            file.write(content)

        write(len(text).to_bytes(8, "little") + text)
        for name in names:
            data = value(tensors[name]).detach().to("cpu", stored[name]).contiguous()
            check_finite(name, data)
            write(data.reshape(-1).view(torch.uint8).numpy().data)
            del data
        file.flush()
        os.fsync(file.fileno())
    return digester.facts()


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises TrainError if a tensor that is to be exported has NaN or infinite elements in its precision."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    smallest, largest = torch.aminmax(tensor)  # NaN if any element is; ten times as fast as isfinite of all
    if bool(torch.isfinite(smallest) & torch.isfinite(largest)):
        return
    is_half = tensor.dtype == torch.float16
    hint = "export with --precision bf16 if its values are too large for float16, or " if is_half else ""
    raise TrainError(
        f"{name}: has NaN or infinite elements in {str(tensor.dtype).removeprefix('torch.')}; expected finite weights: "
        f"{hint}export an earlier checkpoint"
    )


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file and flush it to disk, with the default mode of new files; the library sets 0600.

    Raises OSError for a full disk, with the folder, what is free there and what is needed; SafetensorError for others.
    """
    with disk_named(path.parent, sum(tensor.nbytes for tensor in tensors.values())):
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file(dict(tensors), str(path), metadata={"format": "pt"})
        except SafetensorError as error:
            for number in FULL:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number)) from None
            raise
        path.chmod(mode)
        handle = os.open(path, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class WeightFiles:
    """The tensors of a folder, by name.

    A file is open only while something of it is read: pages of an open file count as memory of the process.
    """

    def __init__(self, folder: Path, checked: CheckedFiles | None = None) -> None:
        """checked: what the folder's record says of its files. Raises TrainError if files are missing or damaged."""
        self.folder, self._checked = folder, checked
        if (folder / INDEX).is_file():
            self._files = _read_index(folder / INDEX)
        else:
            with self._open(SINGLE) as opened:
                self._files = dict.fromkeys(opened.keys(), SINGLE)

    def names(self) -> Iterable[str]:
        """The names of all tensors."""
        return self._files.keys()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of all tensors. Raises TrainError if a file is missing or damaged."""
        shapes: dict[str, tuple[int, ...]] = {}
        for file in dict.fromkeys(self._files.values()):
            with self._open(file) as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        return shapes

    def read(self, name: str, *, shape: Sequence[int]) -> torch.Tensor:
        """The tensor of this name and shape. Raises TrainError if it is missing, damaged or of another shape."""
        file = self._files.get(name)
        if file is None:
            raise TrainError(f"{self.folder}: the weights lack {name}; {_AGAIN}")
        with self._open(file) as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        if tensor.shape != torch.Size(shape):
            raise TrainError(f"{self.folder}: {name} is {list(tensor.shape)}, expected {list(shape)}; {_AGAIN}")
        return tensor

    @contextmanager
    def _open(self, file: str) -> Iterator[Any]:  # a safe_open, whose methods are declared without types
        try:
            if self._checked is not None:
                self._checked.check(file)
            with safe_open(str(self.folder / file), framework="pt") as opened:
                yield opened
        except FileNotFoundError:
            raise TrainError(f"{self.folder / file}: is missing; {_AGAIN}") from None
        except (OSError, SafetensorError) as error:
            raise _damaged(self.folder / file, str(error)) from None


def _read_index(path: Path) -> dict[str, str]:
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        invalid = [file for file in files.values() if not _NAME.fullmatch(file)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if invalid:
        raise _damaged(path, f"it names {invalid[0]!r}, which is not a file of weights")
    return files


def _damaged(path: Path, why: str) -> TrainError:
    return TrainError(f"{path}: is damaged ({why}); {_AGAIN}")
