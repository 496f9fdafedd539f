"""Second stage of a build: one task turns some conversations of a dataset into one shard.

Rule: a task is pure: the same task gives the same bytes on any engine. Its result is written under its key only after
its shard is complete, so an interrupted build resumes where it stopped. Memory holds one sample and the shard's index;
with `share` also the tokens of the task's conversations, since samples are sorted before images are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dst import IGNORE, Encoded
from preprocess.compiler.concat import join
from preprocess.compiler.image_digests import ImageDigests
from preprocess.compiler.member import Member, make_member, tokenize, with_images
from preprocess.compiler.sealed_json import read_sealed, write_sealed
from preprocess.compiler.shard_files import changed_ns, send, untouched
from preprocess.compiler.share import share
from preprocess.compiler.spool import reject_all, reject_line
from preprocess.compiler.task import CompileTask, TaskResult, Tools, open_tools
from preprocess.compiler.worker_deaths import deadly_items, died_detail, noting
from preprocess.conversation import Conversation, Image, Reject
from preprocess.errors import DataError, RejectError
from preprocess.filters.image_rules import broken_image_rule
from preprocess.images.prepare import StoredImage
from shards import ShardWriter
from shards.files import disk_named, replace_file
from shards.format.branches import IntArray
from shards.images.tiles import described as described_grid

if TYPE_CHECKING:
    pass


def run_task(task: CompileTask) -> TaskResult:
    """Write the task's shard, its rejects and its marker. Raises DataError or OSError if another try may succeed."""
    with disk_named(task.context.cache):
        return _run(task)


def _run(task: CompileTask) -> TaskResult:
    context = task.context
    digests = ImageDigests()
    tools = open_tools(context)
    stem = f"{task.split}-{task.number:05d}"
    folder, stays = f"shards/{context.dataset}", context.url is None
    writer = ShardWriter(task.staging, folder, stem, tiled=context.tiled, durable=stays)
    outcome = _Outcome()
    try:
        with noting(task.marker) as note, tools.stores.reading_ahead(_upcoming(task, tools)) as stores:
            tools = replace(tools, stores=stores.watched(digests.add))
            conversations = _conversations(task, tools, outcome, note)
            compiled = _shared if context.share > 1 else _joined
            for group, tokens in compiled(conversations, task, tools, outcome, note):
                _write(writer, task, group, tokens, outcome)
        shard = writer.finish()
    except BaseException:
        writer.discard()
        raise
    if shard and context.url:
        send(task.staging, shard, context.url)
    result = TaskResult(
        shard=shard,
        changed_ns=() if shard is None or context.url else changed_ns(task.staging, shard),
        members=outcome.members,
        ids=outcome.ids,
        notes=dict(sorted(outcome.notes.items())),
        rejects=dict(sorted(Counter(reject.reason for reject in outcome.rejects).items())),
        filtered=dict(sorted(outcome.filtered.items())),
    )
    task.marker.parent.mkdir(parents=True, exist_ok=True)
    if outcome.rejects:
        replace_file(task.rejects, b"".join(reject_line(context.dataset, reject) for reject in outcome.rejects))
    else:
        task.rejects.unlink(missing_ok=True)  # of a try that did not end
    digests.write(task.digests)
    write_sealed(task.marker, result.to_json(), [task.rejects] if outcome.rejects else [])
    return result


def _upcoming(task: CompileTask, tools: Tools) -> Iterator[Image]:
    """The images in the order of their records; with `share` that is not the order in which they are read."""
    rows = task.rows.tolist() if task.context.share == 1 else ()
    return (image for row in rows for image in tools.spool[row].images[: task.context.max_images])


def read_result(task: CompileTask, remote: Mapping[str, int] | None = None) -> TaskResult | None:
    """The result of an earlier run of the same task, if its shard still exists and has not changed since.

    remote: path -> bytes of the shards at the URL, if the build goes to one.
    """
    try:
        result = TaskResult.from_json(read_sealed(task.marker, [task.rejects] if task.rejects.is_file() else []))
        if result.rejects and not task.rejects.is_file():
            return None
        if remote is not None and result.shard is not None:
            return result if all(remote.get(path) == size for path, size in result.shard.sizes()) else None
        return result if result.shard is None or untouched(task, result.shard, result.changed_ns) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(slots=True)
class _Outcome:
    members: int = 0
    ids: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    rejects: list[Reject] = field(default_factory=list)
    filtered: Counter[str] = field(default_factory=Counter)


def _conversations(
    task: CompileTask, tools: Tools, outcome: _Outcome, note: Callable[[int], None]
) -> Iterator[tuple[int, Conversation]]:
    """Each row and its conversation, without those at which worker processes died."""
    deadly = deadly_items(task.marker)
    for row in task.rows.tolist():
        note(row)
        if row in deadly:
            detail = died_detail(task.marker, deadly[row])
            outcome.rejects += reject_all(tools.spool[row], "worker_died", detail)
        else:
            yield row, tools.spool[row]


def _joined(
    conversations: Iterator[tuple[int, Conversation]],
    task: CompileTask,
    tools: Tools,
    outcome: _Outcome,
    note: Callable[[int], None],
) -> Iterator[tuple[list[Member], IntArray]]:
    """The members of each sample, and its tokens: conversations as they are, or joined by `concat`."""

    def members() -> Iterator[Member]:
        for row, conversation in conversations:
            make = partial(_alone, make_member, row, conversation, tools, task.context)
            yield from _unless_rejected([conversation], make, task, outcome)

    for group, encoded in join(members(), tools, task.context):
        note(group[0].row)
        complete = _with_all_tiles(group, encoded, task, tools, outcome)
        if complete:
            yield complete, np.stack([encoded.ids, encoded.labels])


def _with_all_tiles(
    group: list[Member], encoded: Encoded, task: CompileTask, tools: Tools, outcome: _Outcome
) -> list[Member]:
    """If no other image joined that of a sample, the members with the tiles of one alone; it is read again for them."""
    context = task.context
    if not context.tiled or context.concat == 1 or sum(len(member.images) for member in group) != 1:
        return group
    (showing,) = [member for member in group if member.images]
    text_tokens = len(encoded.ids) - encoded.images
    make = partial(with_images, [showing], tools, context, text_tokens=text_tokens)
    complete = _unless_rejected([member.conversation for member in group], make, task, outcome)
    return [complete[0] if member is showing else member for member in group] if complete else []


def _shared(
    conversations: Iterator[tuple[int, Conversation]],
    task: CompileTask,
    tools: Tools,
    outcome: _Outcome,
    note: Callable[[int], None],
) -> Iterator[tuple[list[Member], IntArray]]:
    """The same with `share`: all conversations are tokenized before the first image is read, and each is read once."""
    members: list[Member] = []
    for row, conversation in conversations:
        make = partial(_alone, tokenize, row, conversation, tools, task.context)
        members += _unless_rejected([conversation], make, task, outcome)
    deadly = deadly_items(task.marker)
    for sample in share(members, tools, task.context):
        conversations_of = [member.conversation for member in sample.members]
        images_of = -2 - sample.members[0].row  # other numbers than those of the rows
        note(images_of)
        if images_of in deadly:
            detail = died_detail(task.marker, deadly[images_of])
            for conversation in conversations_of:
                outcome.rejects += reject_all(conversation, "worker_died", detail)
            continue
        make_images = partial(with_images, sample.members, tools, task.context, text_tokens=sample.text_tokens)
        if complete := _unless_rejected(conversations_of, make_images, task, outcome):
            yield complete, sample.tokens()


def _alone(make: Callable[..., Member], *arguments: object) -> list[Member]:
    return [make(*arguments)]


def _unless_rejected(
    conversations: Sequence[Conversation], make: Callable[[], list[Member]], task: CompileTask, outcome: _Outcome
) -> list[Member]:
    """The members that `make` makes of conversations about the same images; none if these are rejects."""
    try:
        members = make()
        broken = broken_image_rule(task.context.image_rules, [image.original_size for image in members[0].images])
        if broken is None:
            return members
        outcome.filtered[broken.rule] += sum(len(conversation.sources) for conversation in conversations)
        reason, detail = "filtered", str(broken)
    except RejectError as refused:
        reason, detail = refused.reason, refused.detail
    except (OSError, DataError):
        raise  # the fault of a disk or of the cache, not the record's: another run may succeed
    except MemoryError:
        sources = ", ".join(f"{source.file} {source.record}" for source in conversations[0].sources)
        raise DataError(f"dataset {task.context.dataset}: memory ran out at {sources}; use fewer --workers") from None
    except Exception as error:  # one bad sample neither ends a build nor is dropped without a reject
        reason, detail = "internal_error", f"{type(error).__name__}: {error}"
    for conversation in conversations:
        outcome.rejects += reject_all(conversation, reason, detail)
    return []


def _write(writer: ShardWriter, task: CompileTask, group: list[Member], tokens: IntArray, outcome: _Outcome) -> None:
    conversations = [member.conversation for member in group]
    sources = [source for conversation in conversations for source in conversation.sources]
    has_branches = len(tokens) > 2
    showing = group[:1] if has_branches else group
    images = [image for member in showing for image in member.images]
    shown = [image for member in showing for image in member.conversation.images[: len(member.images)]]
    notes = sorted({note for member in group for note in member.notes})
    metadata: dict[str, Any] = {
        "id": conversations[0].id,
        "dataset": task.context.dataset,
        "split": task.split,
        "sources": [{"file": source.file, "record": source.record} for source in sources],
        "images": [_described(*pair, tiled=task.context.tiled) for pair in zip(shown, images, strict=True)],
    }
    if has_branches:
        metadata["branches"] = [{"id": each.id, "records": len(each.sources)} for each in conversations]
    if notes:
        metadata["notes"] = notes
    references = [list(conversation.references) for conversation in conversations]
    if any(references):
        metadata["references"] = references
    writer.add(
        f"{task.context.dataset}-{group[0].row:09d}",
        metadata=metadata,
        tokens=tokens,
        images=[(image.extension, image.data) for image in images],
        trained_tokens=int(np.count_nonzero(tokens[1] != IGNORE)),
        groups=sorted({name for conversation in conversations for name in conversation.groups}),
        tiles=[image.grid.tiles for image in images],
    )
    outcome.members += len(sources)
    outcome.ids += tokens.shape[1]
    for member in group:
        outcome.notes.update(member.notes)


def _described(shown: Image, image: StoredImage, *, tiled: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"name": shown.name, "width": image.width, "height": image.height}
    if shown.frame is not None:
        described["frame"] = shown.frame
    if image.time_s is not None:
        described["time_s"] = round(image.time_s, 3)
    if image.original_size != (image.width, image.height):
        described["original_width"], described["original_height"] = image.original_size
    if tiled:
        described |= described_grid(image.grid)
    return described
