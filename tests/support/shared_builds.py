"""Builds with `share`, and the records of a build one by one, to compare with a build without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import shards
from shards import Sample
from tests.support.small_blends import chat_blend, chat_record, write_images


class BuiltRecord(NamedTuple):
    """A record as its sample holds it."""

    sample: str
    split: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    images: tuple[bytes, ...]
    references: tuple[str, ...]


def records_of(folder: Path) -> dict[str, BuiltRecord]:
    """id of each record -> what the build says of it. A sample without branches is one record."""
    build = shards.open(folder)
    records: dict[str, BuiltRecord] = {}
    for split in build.splits:
        for sample in build[split]:
            names = [branch["id"] for branch in sample.metadata.get("branches", [])] or [sample.metadata["id"]]
            for number, (name, branch) in enumerate(zip(names, sample.branches, strict=True)):
                assert name not in records, f"{name} is in the build twice"
                records[name] = BuiltRecord(
                    sample=sample.key,
                    split=split,
                    ids=tuple(branch.of(sample.ids).tolist()),
                    labels=tuple(branch.of(sample.labels).tolist()),
                    images=tuple(map(bytes, sample.images)),
                    references=tuple(sample.metadata.get("references", [[]] * len(names))[number]),
                )
    return records


def samples_of(folder: Path, split: str = "train") -> list[Sample]:
    return list(shards.open(folder)[split])


def question_blend(
    folder: Path, questions: Mapping[int, int], *, share: int = 4, dataset: Mapping[str, Any] | None = None, **more: Any
) -> Path:
    """Records of one round, with an image each. questions: number of the image -> how many records ask about it."""
    names = write_images(folder / "mine", max(questions, default=0) + 1)
    asked = [image for image, count in questions.items() for _ in range(count)]
    records = [chat_record(number, images=[names[image]]) for number, image in enumerate(asked)]
    return chat_blend(folder, records, dataset={"share": share, **(dataset or {})}, **more)
