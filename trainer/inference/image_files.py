"""Keys and values of images as files of a folder, for the next start of the server and for others on this machine.

A file is the 16 bytes of the xxh3_128 of its name and content, and then its content: safetensors `k0`, `v0`, `k1`, ...
[K, Q, D]. Its name has the fingerprint of the model and the digest of the image, so a folder may be shared, and may be
deleted at any time. Files that are damaged, or have the content of another, are removed; what was used longest ago is
removed first when the folder is full.

Rule: the folder is listed at the start, and then each time that this process has written a sixteenth of the limit. A
listing finds what others wrote or removed, and makes room for the next sixteenth. So one process keeps to the limit,
and each further one that writes to the folder at the same time may exceed it by a sixteenth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load, save

from shards.files import owned_digest, partial_path
from trainer.errors import TrainError
from trainer.inference.slots import States
from trainer.model.vision_chat import VisionChatModel

SUFFIX = ".states"
_DIGEST_BYTES = 16
_ABANDONED_S = 3600
"""Age of a file that another process began to write and did not finish"""

_LISTINGS = 16
"""Of the folder while as many bytes as its limit are written"""


class ImageFiles:
    """Files of one model in a folder that others may use too. note: called with a line about each problem."""

    def __init__(
        self, folder: Path, fingerprint: str, *, limit_bytes: int, device: torch.device, note: Callable[[str], None]
    ) -> None:
        """Raises TrainError if the folder cannot be made or listed."""
        self._folder, self._fingerprint, self._limit_bytes = folder, fingerprint, limit_bytes
        self._device, self._note = device, note
        self._is_writable = True
        self._room_bytes = 0
        """What may be written before the folder is listed again"""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f".*{SUFFIX}.*.partial"):
                if path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink(missing_ok=True)
            self._make_room(0)
        except OSError as error:
            raise TrainError(
                f"{folder}: images cannot be kept there: {error.strerror}; expected a folder that can be written"
            ) from None

    def read(self, digest: bytes) -> States | None:
        """The states of a tile; None if there is no sound file of it."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._note(f"{path}: cannot be read ({error.strerror}); the image is read again")
            return None
        body = memoryview(data)[_DIGEST_BYTES:]
        states = self._parsed(body) if owned_digest(path.name, body).digest() == data[:_DIGEST_BYTES] else None
        if states is None:
            self._note(f"{path}: is damaged and is removed; the image is read again")
            with suppress(OSError):  # a folder that cannot be written
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # unlike touch, it makes no file where another process has just removed this one
        return states

    def write(self, digest: bytes, states: States) -> None:
        """Keep the states of a tile. A disk that takes no more is noted once, and nothing is written from then on."""
        path = self._path(digest)
        if not self._is_writable or path.exists():
            return
        tensors = {
            f"{kind}{layer}": tensor.contiguous().cpu()
            for kind, of_kind in (("k", states.keys), ("v", states.values))
            for layer, tensor in enumerate(of_kind)
        }
        body = save(tensors)
        size = len(body) + _DIGEST_BYTES
        if size > self._limit_bytes:
            return
        partial = partial_path(path)
        try:
            if size > self._room_bytes:
                self._make_room(max(size, self._limit_bytes // _LISTINGS))
            self._room_bytes -= size
            with partial.open("wb") as file:  # not flushed to disk: a file that a crash cuts off is found by its digest
                file.write(owned_digest(path.name, body).digest())
                file.write(body)
            partial.replace(path)
        except OSError as error:
            self._is_writable = False
            with suppress(OSError):
                partial.unlink()
            self._note(f"{self._folder}: no more images are kept there ({error.strerror}); images stay in memory alone")

    def _path(self, digest: bytes) -> Path:
        return self._folder / f"{self._fingerprint}-{digest.hex()}{SUFFIX}"

    def _parsed(self, body: memoryview) -> States | None:
        try:
            tensors = load(bytes(body))
            layers = range(len(tensors) // 2)
            keys, values = ([tensors[f"{kind}{layer}"].to(self._device) for layer in layers] for kind in "kv")
        except (SafetensorError, KeyError):
            return None
        return States(tuple(keys), tuple(values))

    def _make_room(self, num_bytes: int) -> None:
        """List the folder, and remove what was used longest ago, of any model, until there is room for this much."""
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                with suppress(FileNotFoundError):  # another process removed it
                    facts = entry.stat()
                    files.append((facts.st_mtime, facts.st_size, entry.path))
        excess = sum(size for _, size, _ in files) + num_bytes - self._limit_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess -= size
        self._room_bytes = num_bytes


def fingerprint_of(model: VisionChatModel) -> str:
    """Of everything that an image's keys and values depend on: weights, their types, configuration, library."""
    import transformers

    digest = xxhash.xxh3_128(repr((1, transformers.__version__, model.attention, model.image_tokens)).encode())
    digest.update(model.decoder.config.to_json_string().encode())
    digest.update(repr((type(model.encoder), model.encoder.mean, model.encoder.std)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
