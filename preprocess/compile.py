"""Second stage of a build: one task turns some conversations of a dataset into one shard.

Rule: a task is pure: the same task gives the same bytes on any engine. Its result is written under its key only after
its shard is whole, so an interrupted build goes on where it was. Memory is bounded by one sample and the shard's index.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dst import Encoded
from preprocess.concat import join
from preprocess.conversation import Reject
from preprocess.member import Member, RefusedError, make_member
from preprocess.spool import reject_all
from preprocess.task import CompileTask, Tools, open_tools
from shards import ShardWriter
from shards.writer import replace_file


def run_task(task: CompileTask) -> dict[str, Any]:
    """Write the task's shard and its marker; returns the marker's content (see `read_result`)."""
    context = task.context
    tools = open_tools(context)
    writer = ShardWriter(context.build, f"shards/{context.dataset}", f"{task.split}-{task.number:05d}")
    outcome = _Outcome()
    try:
        for group in join(_members(task, tools, outcome), tools, context):
            _write(writer, task, group, outcome)
        shard = writer.finish()
    except BaseException:
        writer.discard()
        raise
    result = {
        "shard": shard.to_json() if shard else None,
        "members": outcome.members,
        "ids": outcome.ids,
        "notes": dict(sorted(outcome.notes.items())),
        "rejects": [
            [reject.reason, reject.source.file, reject.source.record, reject.detail] for reject in outcome.rejects
        ],
    }
    task.marker.parent.mkdir(parents=True, exist_ok=True)
    replace_file(task.marker, json.dumps(result).encode())
    return result


def read_result(task: CompileTask) -> dict[str, Any] | None:
    """The result of an earlier run of the same task, if its shard is still there."""
    try:
        result: dict[str, Any] = json.loads(task.marker.read_bytes())
        shard = result["shard"]
        for path, size in [(shard["path"], shard["size"]), (shard["index"], shard["index_size"])] if shard else []:
            if (task.context.build / path).stat().st_size != size:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return result


@dataclass(slots=True)
class _Outcome:
    members: int = 0
    ids: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)


def _members(task: CompileTask, tools: Tools, outcome: _Outcome) -> Iterator[Member]:
    for row in task.rows.tolist():
        conversation = tools.spool[row]
        try:
            yield make_member(row, conversation, tools, task.context)
        except RefusedError as refused:
            outcome.rejects += reject_all(conversation, refused.reason, refused.detail)
        except Exception as error:  # the fence: one bad sample never ends a build, and never goes unnoticed
            outcome.rejects += reject_all(conversation, "internal_error", f"{type(error).__name__}: {error}")


def _write(writer: ShardWriter, task: CompileTask, joined: tuple[list[Member], Encoded], outcome: _Outcome) -> None:
    group, encoded = joined
    conversations = [member.conversation for member in group]
    sources = [source for conversation in conversations for source in conversation.sources]
    images = [image for member in group for image in member.images]
    names = [image.name for member in group for image in member.conversation.images[: len(member.images)]]
    notes = sorted({note for member in group for note in member.notes})
    metadata: dict[str, Any] = {
        "id": conversations[0].id,
        "dataset": task.context.dataset,
        "split": task.split,
        "sources": [{"file": source.file, "record": source.record} for source in sources],
        "images": [
            {"name": name, "width": image.width, "height": image.height}
            for name, image in zip(names, images, strict=True)
        ],
    }
    if notes:
        metadata["notes"] = notes
    references = [list(conversation.references) for conversation in conversations]
    if any(references):
        metadata["references"] = references
    writer.add(
        f"{task.context.dataset}-{group[0].row:09d}",
        metadata=metadata,
        tokens=np.stack([encoded.ids, encoded.labels]),
        images=[(image.extension, image.data) for image in images],
        trained_tokens=encoded.trained_tokens,
        groups=sorted({name for conversation in conversations for name in conversation.groups}),
    )
    outcome.members += len(sources)
    outcome.ids += len(encoded.ids)
    for member in group:
        outcome.notes.update(member.notes)
