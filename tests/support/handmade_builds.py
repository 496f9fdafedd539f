"""Small build folders written by hand with the shard writer, for tests of reading and verifying."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import shards
from shards import Build, Sample, Shard, ShardError
from shards.format.branches import join_branches
from shards.format.manifest import BuildConfig, DatasetInfo, InputFile, Manifest, TokenizerInfo
from shards.format.manifest_file import write_manifest
from shards.format.shard_info import ShardInfo, ShardList
from shards.format.writer import ShardWriter
from shards.typed_json import from_json

IGNORE = -100
IMAGE_ID = 5
VOCABULARY_SIZE = 1000
IMAGE_TOKENS = 4
MAX_LENGTH = 64
MAX_IMAGES = 3

CONFIG: Mapping[str, Any] = {
    "template": "mine",
    "variables": {},
    "image": {"size": 32, "fit": "crop", "pad_colour": "clip", "interpolation": "bicubic", "max_pixels": 10**6},
    "image_tokens": IMAGE_TOKENS,
    "limits": {"max_length": MAX_LENGTH, "max_images": MAX_IMAGES},
    "learning_rate": 1e-05,
    "note": "größer als \u4e2d",
}
"""A blend, in part keys that no reader knows"""

JPEG = b"\xff\xd8\xff\xe0"  # shards never decode an image, so its signature and any bytes will do
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


def branched_draft(number: int, *, dataset: str = "alpha", branches: int = 3, text: int = 4) -> Draft:
    """A sound sample: an image, a token, and branches of `text` tokens whose second half is trained on."""
    random = np.random.default_rng([number, branches])
    beginning = np.array([IMAGE_ID, 7], np.int32)
    records = []
    for _ in range(branches):
        ids = np.concatenate([beginning, random.integers(10, VOCABULARY_SIZE, text).astype(np.int32)])
        records.append(np.stack([ids, np.where(np.arange(len(ids)) >= len(ids) - text // 2, ids, IGNORE)]))
    names = [f"record {number}-{branch}" for branch in range(branches)]
    sample = draft(number, dataset=dataset)
    metadata = {**sample.metadata, "sources": [{"file": "chat.json", "record": name} for name in names]}
    if branches > 1:
        metadata["branches"] = [{"id": name, "records": 1} for name in names]
    tokens = records[0] if branches == 1 else join_branches(records, len(beginning))
    return replace(
        sample,
        metadata=metadata,
        tokens=tokens.astype(np.int32),
        images=(("jpg", JPEG + random.bytes(40)),),
        groups=(f"train:{dataset}-{number}",),
        trained_tokens=int((tokens[1] != IGNORE).sum()),
    )


def retoken(draft: Draft, ids: npt.ArrayLike, labels: npt.ArrayLike) -> Draft:
    """The same sample with other tokens, its trained tokens counted again."""
    tokens = np.stack([np.asarray(ids, dtype=np.int32), np.asarray(labels, dtype=np.int32)])
    return replace(draft, tokens=tokens, trained_tokens=int((tokens[1] != IGNORE).sum()))


def write_shard(
    build: Path, drafts: Sequence[Draft], *, dataset: str = "alpha", split: str = "train", number: int = 0
) -> ShardInfo | None:
    writer = ShardWriter(build, f"shards/{dataset}", f"{split}-{number:05d}")
    for sample in drafts:
        writer.add(
            sample.key,
            metadata=sample.metadata,
            tokens=sample.tokens,
            images=sample.images,
            trained_tokens=sample.trained_tokens,
            groups=sample.groups,
        )
    return writer.finish()


@dataclass(slots=True)
class Handmade:
    """A build folder and what its manifest says, which a test may change before it is written.

    draws: dataset -> its samples in an epoch; default: each of them once. config: keys of the blend that differ from
    CONFIG. files: what the manifest names instead of the files that are written.
    """

    folder: Path
    shards: dict[str, dict[str, list[ShardInfo]]] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] | None = None

    def add(self, drafts: Sequence[Draft], *, dataset: str = "alpha", split: str = "train") -> ShardInfo:
        infos = self.shards.setdefault(dataset, {"train": [], "eval": []})[split]
        info = write_shard(self.folder, drafts, dataset=dataset, split=split, number=len(infos))
        assert info is not None
        infos.append(info)
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
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        write_manifest(self.folder, self.manifest(digests if self.files is None else self.files))
        return self.folder

    def manifest(self, files: Mapping[str, str]) -> Manifest:
        config = {**CONFIG, **self.config, "datasets": [{"name": dataset} for dataset in self.shards]}
        return Manifest(
            dsvl="0.1.0",
            compiler=1,
            libraries={"polars": "1.0.0"},
            config=from_json(BuildConfig, config, "config"),
            template="{{ messages }}",
            tokenizer=TokenizerInfo(
                fingerprint="f" * 64,
                vocabulary_size=VOCABULARY_SIZE,
                image_id=IMAGE_ID,
                bos_token="<s>",
                eos_token="</s>",
            ),
            datasets={name: self._dataset(name, splits) for name, splits in self.shards.items()},
            files=files,
        )

    def _dataset(self, name: str, splits: Mapping[str, Sequence[ShardInfo]]) -> DatasetInfo:
        infos = [info for split in splits.values() for info in split]
        samples = {split: sum(info.samples for info in splits[split]) for split in splits}
        return DatasetInfo(
            adapter="chat",
            template="{{ messages }}",
            records=sum(samples.values()),
            members=sum(samples.values()),
            samples=sum(samples.values()),
            splits=samples,
            images=sum(info.images for info in infos),
            tokens=sum(info.text_tokens + info.images for info in infos),
            trained_tokens=sum(info.trained_tokens for info in infos),
            share=1 / len(self.shards),
            draws=self.draws.get(name, samples["train"]),
            rejects={},
            notes={},
            absent=(),
            inputs=(InputFile(file="chat.json", size=9, sha256="0" * 64),),
            shards={split: ShardList(infos) for split, infos in splits.items()},
        )


def make(folder: Path) -> Handmade:
    """A sound build: two datasets, both splits, samples with none to three images."""
    build = Handmade(folder)
    build.add([draft(number, num_images=number % 4) for number in range(4)])
    build.add([draft(number, num_images=number % 4) for number in range(4, 8)])
    build.add([draft(number, split="eval") for number in range(2)], split="eval")
    build.add([draft(number, dataset="beta", num_images=0) for number in range(3)], dataset="beta")
    build.finish()
    return build


def first_shard(build: Build) -> Shard:
    return next(shard for _, _, shard in build.shards(dataset="alpha", split="train"))


def folder_of(build: Build) -> Path:
    return Path(build.store.location)


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(sample: Sample, draft: Draft) -> bool:
    """Whether the sample that was read is the draft that was written."""
    return (
        sample.key == draft.key
        and sample.metadata == draft.metadata
        and np.array_equal(np.stack([sample.ids, sample.labels]), draft.tokens)
        and sample.ids.dtype == sample.labels.dtype == np.int32
        and sample.images == tuple(data for _, data in draft.images)
    )


def problems(build: Path) -> list[str]:
    """What verify says; an unusable manifest is a problem too. Anything but ShardError fails the test."""
    try:
        return shards.verify(shards.open(build)).problems
    except ShardError as error:
        return [str(error)]
