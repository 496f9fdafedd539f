"""Small build folders written by hand with the shard writer, for tests of reading and verifying."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.format.manifest import write_manifest
from shards.format.writer import ShardInfo, ShardWriter

IGNORE = -100
IMAGE_ID = 5
VOCABULARY_SIZE = 1000
IMAGE_TOKENS = 4
MAX_LENGTH = 64
MAX_IMAGES = 3

JPEG = b"\xff\xd8\xff\xe0"  # shards never decode a picture, so its signature and any bytes will do
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What goes into the writer for one sample."""

    key: str
    metadata: Mapping[str, Any]
    tokens: npt.NDArray[np.int32]
    images: tuple[tuple[str, bytes], ...] = ()
    groups: tuple[str, ...] = ()
    trained_tokens: int = 0


def draft(number: int, *, dataset: str = "alpha", split: str = "train", num_images: int = 1, text: int = 12) -> Draft:
    """A sound sample: placeholders first, then text whose second half is trained on."""
    random = np.random.default_rng([number, num_images, text])
    ids = np.concatenate([np.full(num_images, IMAGE_ID), random.integers(10, VOCABULARY_SIZE, text)]).astype(np.int32)
    labels = np.where(np.arange(len(ids)) >= num_images + text // 2, ids, IGNORE).astype(np.int32)
    images = tuple((("jpg", JPEG) if index % 2 == 0 else ("png", PNG)) for index in range(num_images))
    return Draft(
        key=f"{dataset}-{split}-{number:05d}",
        metadata={
            "id": f"record {number}",
            "dataset": dataset,
            "split": split,
            "sources": [{"file": "chat.json", "record": str(number)}],
            "images": [{"name": f"{number}-{index}.jpg", "width": 8, "height": 6} for index in range(num_images)],
        },
        tokens=np.stack([ids, labels]),
        images=tuple(
            (extension, start + random.bytes(40 + 300 * index)) for index, (extension, start) in enumerate(images)
        ),
        groups=tuple(f"{split}:{number}-{index}" for index in range(num_images)),
        trained_tokens=text - text // 2,
    )


def retoken(draft: Draft, ids: npt.ArrayLike, labels: npt.ArrayLike) -> Draft:
    """The same sample with other tokens, its trained tokens counted anew."""
    tokens = np.stack([np.asarray(ids, dtype=np.int32), np.asarray(labels, dtype=np.int32)])
    return replace(draft, tokens=tokens, trained_tokens=int((tokens[1] != IGNORE).sum()))


def write_shard(
    build: Path, drafts: Sequence[Draft], *, dataset: str = "alpha", split: str = "train", number: int = 0
) -> ShardInfo | None:
    writer = ShardWriter(build, f"shards/{dataset}", f"{split}-{number:05d}")
    for one in drafts:
        writer.add(
            one.key,
            metadata=one.metadata,
            tokens=one.tokens,
            images=one.images,
            trained_tokens=one.trained_tokens,
            groups=one.groups,
        )
    return writer.finish()


@dataclass(slots=True)
class Handmade:
    """A build folder and the manifest's content, which a test may change and write again."""

    folder: Path
    shards: dict[str, dict[str, list[ShardInfo]]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, drafts: Sequence[Draft], *, dataset: str = "alpha", split: str = "train") -> ShardInfo:
        found = self.shards.setdefault(dataset, {"train": [], "eval": []})[split]
        info = write_shard(self.folder, drafts, dataset=dataset, split=split, number=len(found))
        assert info is not None
        found.append(info)
        return info

    def finish(self) -> Path:
        """Write the tokenizer's files, the rejects and the manifest."""
        files = {
            "rejects.jsonl": b'{"dataset":"alpha","reason":"no_answer","file":"chat.json","record":"9","detail":""}\n',
            "tokenizer/tokenizer.json": b'{"model": {"type": "BPE"}}\n',
            "tokenizer/chat_template.jinja": b"{{ messages }}\n",
        }
        for name, content in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        write_manifest(self.folder, self.content(files))
        return self.folder

    def content(self, files: Mapping[str, bytes]) -> dict[str, Any]:
        return {
            "config": {
                "datasets": [{"name": dataset} for dataset in self.shards],
                "image_tokens": IMAGE_TOKENS,
                "learning_rate": 1e-05,
                "limits": {"max_length": MAX_LENGTH, "max_images": MAX_IMAGES},
                "note": "größer als \u4e2d",
            },
            "tokenizer": {"vocabulary_size": VOCABULARY_SIZE, "image_id": IMAGE_ID},
            "datasets": {
                dataset: {"shards": {split: [info.to_json() for info in found] for split, found in splits.items()}}
                for dataset, splits in self.shards.items()
            },
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            **self.extra,
        }


def make(folder: Path) -> Handmade:
    """A sound build: two datasets, both splits, samples with none to three images."""
    build = Handmade(folder)
    build.add([draft(number, num_images=number % 4) for number in range(4)])
    build.add([draft(number, num_images=number % 4) for number in range(4, 8)])
    build.add([draft(number, split="eval") for number in range(2)], split="eval")
    build.add([draft(number, dataset="beta", num_images=0) for number in range(3)], dataset="beta")
    build.finish()
    return build
