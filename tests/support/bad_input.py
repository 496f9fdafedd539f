"""What tests of bad input share: one build with good and bad records, and what should come of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import shards
from preprocess.compiler.report import DatasetReport
from preprocess.conversation import REASONS
from tests.support.small_blends import (
    SAMPLES,
    build,
    chat_blend,
    rejects_of,
)

PHOTO = (SAMPLES / "coco/train2017/000000000112.jpg").read_bytes()


class Bad(NamedTuple):
    """A record as an object or as the bytes of its line. record: how rejects.jsonl calls it, if not by its id or, for
    one that has none, by its number."""

    content: dict[str, Any] | bytes
    reason: str
    detail: str = ""
    record: str | None = None


def samples_of(folder: Path) -> dict[tuple[str, str], Any]:
    """All that a reader gets, by dataset and conversation; keys and places may differ between builds."""
    actual = {}
    for dataset, split, shard in shards.open(folder).shards():
        for row in range(len(shard)):
            sample = shard[row]
            ours = {name: value for name, value in sample.metadata.items() if name not in ("sources", "split")}
            content = (split, sample.ids.tolist(), sample.labels.tolist(), sample.images, ours)
            actual[dataset, sample.metadata["id"]] = content
    return actual


def check(folder: Path, good: Sequence[dict[str, Any]], bad: Sequence[Bad], **settings: Any) -> DatasetReport:
    """Build with the bad records spread between the good ones, and once more without them."""
    contents: list[dict[str, Any] | bytes] = list(good[1:])
    step = max(1, len(contents) // len(bad))
    for index, bad_record in enumerate(bad):
        contents.insert(index * (step + 1), bad_record.content)
    contents.insert(0, good[0])
    numbers = {id(content): str(number) for number, content in enumerate(contents)}
    blend = chat_blend(folder, [], **{"limits": {"max_reject_share": 1.0}, **settings})
    annotations = folder / "mine/chat.jsonl"
    write_lines(annotations, contents)
    mine = build(blend).datasets["mine"]
    rejects = rejects_of(folder / "build")
    assert set(REASONS) >= {reject["reason"] for reject in rejects}
    names = [bad_record.record or _own_id(bad_record.content) or numbers[id(bad_record.content)] for bad_record in bad]
    expected = Counter((name, bad_record.reason) for name, bad_record in zip(names, bad, strict=True))
    assert Counter((reject["record"], reject["reason"]) for reject in rejects) == expected
    for name, bad_record in zip(names, bad, strict=True):
        detail = bad_record.detail.replace("LINE", f"line {int(numbers[id(bad_record.content)]) + 1}")
        assert any(detail in reject["detail"] for reject in rejects if reject["record"] == name), (detail, rejects)
    assert (mine.records, mine.members, sum(mine.rejects.values())) == (len(contents), len(good), len(bad))
    assert shards.verify(shards.open(folder / "build")).problems == []
    write_lines(annotations, good)
    assert build(blend, out=folder / "alone").datasets["mine"].rejects == {}
    assert samples_of(folder / "build") == samples_of(folder / "alone")
    assert len(samples_of(folder / "alone")) == len(good)
    return mine


def write_lines(path: Path, contents: Sequence[dict[str, Any] | bytes]) -> None:
    lines = [content if isinstance(content, bytes) else json.dumps(content).encode() for content in contents]
    path.write_bytes(b"\n".join(lines) + b"\n")


def _own_id(content: dict[str, Any] | bytes) -> str | None:
    return content.get("id") if isinstance(content, dict) else None


def talk(*contents: Any, **more: Any) -> dict[str, Any]:
    """Turns of user and assistant, in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return {"messages": messages, **more}
