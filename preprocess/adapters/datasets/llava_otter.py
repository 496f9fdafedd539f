"""llava_otter_blend: LLaVA's rounds about each image of a CGD pair, then CGD's rounds about both.

Rule, as in DeepSpeed-VisualChat: the records are CGD's instructions; LLaVA's files are only a lookup table, joined on
COCO's image number. Of the LLaVA records about an image, (seed, conversation id) chooses one. Every image except the
last must have one, so that images appear in CGD's order; without one, the last is shown in CGD's first round.
A malformed LLaVA record is a reject, since it might have been chosen; a valid one does not count as a record here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from preprocess.adapters.base import Request
from preprocess.adapters.datasets.llava import rounds
from preprocess.adapters.datasets.mimicit import InstructionSet, image_group_of, instruction_sets, naming, turns_of
from preprocess.adapters.parsing.choices import choose
from preprocess.adapters.parsing.fields import build_or_reject, image_groups
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.keys import own_id
from preprocess.adapters.parsing.media_tags import TagRules
from preprocess.adapters.parsing.record_files import json_form, json_records
from preprocess.conversation import Conversation, Image, Records, RecordSource, Reject, Turn
from preprocess.conversation_lines import decode, encode
from preprocess.errors import DataError, RejectError

if TYPE_CHECKING:
    import polars


def read(request: Request) -> Records:
    arrays = [path for path in request.annotations if json_form(path) in ("array", "lines")]
    others = [path for path in request.annotations if path not in arrays]
    if not arrays or not others:
        raise DataError(
            f"{request.root}: got {len(arrays)} LLaVA files (arrays, lines) and {len(others)} CGD files (objects); "
            "expected at least one of each in `annotations`"
        )
    sets: list[InstructionSet] = []
    for path in others:
        for item in instruction_sets(request, path):
            if isinstance(item, Reject):
                yield item
            else:
                sets.append(item)
    needed = {image_group_of(image_id) for item in sets for image_id in item.image_ids}
    partners: list[tuple[str, bytes]] = []
    for path in arrays:
        yield from _partners(request, path, needed, partners)
    identities = Identities(request)
    for instructions, found in zip(sets, _join(sets, partners), strict=True):
        made = build_or_reject(instructions.sources[0], _conversation, request, identities, instructions, found)
        if isinstance(made, Reject):
            for source in instructions.sources:
                yield Reject(reason=made.reason, source=source, detail=made.detail)
        else:
            yield made


def _partners(request: Request, path: Path, needed: set[str], partners: list[tuple[str, bytes]]) -> Iterator[Reject]:
    """Add the file's records about exactly one needed image to `partners`: its group and the encoded rounds."""
    file, rules = request.source_file(path), TagRules.of(request)
    for number, record in enumerate(json_records(path)):
        source = RecordSource(file=file, record=own_id(request, record, "id") or str(number))
        made = build_or_reject(source, rounds, request, record, rules)
        if isinstance(made, Reject):
            yield made
            continue
        turns, notes = made
        found = Conversation(id="", turns=turns, sources=(), notes=notes)
        groups = image_groups(request, found.images)
        if len(found.images) == 1 and groups[0] in needed:
            partners.append((groups[0], encode(found)))


def _join(sets: list[InstructionSet], partners: list[tuple[str, bytes]]) -> Iterator[list[list[bytes]]]:
    """For each set, for each of its images, the LLaVA rounds about it in file order."""
    import polars

    slots = [image_group_of(image_id) for item in sets for image_id in item.image_ids]
    left = polars.DataFrame({"image": slots}, schema={"image": polars.String})
    right = polars.DataFrame(partners, orient="row", schema={"image": polars.String, "rounds": polars.Binary})
    rows = _rows(left, right.group_by("image", maintain_order=True).agg("rounds"))
    for item in sets:
        yield [next(rows) for _ in item.image_ids]


def _rows(left: polars.DataFrame, right: polars.DataFrame) -> Iterator[list[bytes]]:
    for (found,) in left.join(right, on="image", how="left", maintain_order="left").select("rounds").iter_rows():
        yield found or []


def _conversation(
    request: Request, identities: Identities, instructions: InstructionSet, found: list[list[bytes]]
) -> Conversation:
    if not instructions.image_ids:
        raise RejectError("no_match", "the instruction names no image; expected images, to look up LLaVA's rounds")
    name_of = naming(request)
    images = [Image(name=name_of(image_id)) for image_id in instructions.image_ids]
    key = f"{identities.label(instructions.path)}/{instructions.own or instructions.number}"
    turns: list[Turn] = []
    notes: dict[str, None] = {}
    last = len(images) - 1
    leading: tuple[Image, ...] = ()
    for slot, (image, candidates) in enumerate(zip(images, found, strict=True)):
        if candidates:
            chosen = decode(choose(candidates, request.seed, f"{key}/{slot}"))
            notes.update(dict.fromkeys(chosen.notes))
            turns += [_shows(turn, image) for turn in chosen.turns if turn.role != "system"]
        elif slot == last:
            leading = (image,)
        else:
            raise RejectError("no_match", f"LLaVA has no rounds about image {slot + 1} of {len(images)}, {image.name}")
    return Conversation(
        id=identities.claim(identities.label(instructions.path), instructions.own, instructions.number),
        turns=(*turns, *turns_of(instructions.rounds, leading)),
        sources=instructions.sources,
        groups=tuple(dict.fromkeys(image_group_of(image_id) for image_id in instructions.image_ids)),
        notes=tuple(notes),
        fields=instructions.fields,
    )


def _shows(turn: Turn, image: Image) -> Turn:
    """The turn, with the image under its name in CGD."""
    return Turn(role=turn.role, parts=tuple(image if isinstance(part, Image) else part for part in turn.parts))
