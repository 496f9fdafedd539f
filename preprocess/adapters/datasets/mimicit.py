"""MIMIC-IT: `{"data": {id: {"instruction", "answer", "image_ids", "rel_ins_ids"}}}`, one function for all subsets.

Rule: instructions that name each other in rel_ins_ids and show the same images become the rounds of one conversation,
in file order, each exactly once. The images are shown in the first question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.adapters.base import Request
from preprocess.adapters.groups import coco_group
from preprocess.adapters.parsing.fields import (
    answer,
    as_id,
    build_or_reject,
    check_image_count,
    image_name,
    need,
    question,
    show,
)
from preprocess.adapters.parsing.identities import Identities
from preprocess.adapters.parsing.json_stream import object_items, outline
from preprocess.adapters.parsing.keys import fields_of_all, filter_fields, record_of
from preprocess.conversation import Conversation, FieldValue, Image, Records, RecordSource, Reject, Scalar, Turn
from preprocess.errors import RejectError

KEYS = frozenset(("instruction", "answer", "image_ids", "rel_ins_ids"))
_CGD_KEY = re.compile(r"CGD_IMG_(\d{1,12})")
_FRAME_KEY = re.compile(r"([^_]+_IMG_.+)_\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """Rounds about the same images. own, number: of the first instruction."""

    path: Path
    own: str | None
    number: int
    image_ids: tuple[str, ...]
    rounds: tuple[tuple[str, str], ...]
    sources: tuple[RecordSource, ...]
    fields: Mapping[str, FieldValue]


def read(request: Request, *, coco_images: bool = False) -> Records:
    """coco_images: the subset shows COCO's images (CGD), under COCO's names unless there is an archive with keys."""
    identities = Identities(request)
    name_of = naming(request) if coco_images else str
    for path in request.annotations:
        for item in instruction_sets(request, path):
            if isinstance(item, Reject):
                yield item
                continue
            made = build_or_reject(item.sources[0], _conversation, request, identities, item, name_of)
            if isinstance(made, Reject):
                for source in item.sources:
                    yield Reject(reason=made.reason, source=source, detail=made.detail)
            else:
                yield made


def instruction_sets(request: Request, path: Path) -> Iterator[InstructionSet | Reject]:
    """The rejects of one file, then its merged sets."""
    graph = _InstructionGraph()
    file = request.source_file(path)
    keys = ("data",) if any(key == "data" for key, _, _ in outline(path)) else ()
    keep = request.options.get("duplicate_ids") == "keep"
    for number, (key, record) in enumerate(object_items(path, *keys)):
        own = as_id(key)
        source = RecordSource(file=file, record=str(number) if own is None else own)
        if own is not None and not keep and graph.has(own):
            detail = "an earlier instruction has this id; set the adapter's option duplicate_ids: keep"
            yield Reject(reason="duplicate_id", source=source, detail=detail)
            continue
        refused = build_or_reject(source, _add, graph, request, own, number, record)
        if refused is not None:
            yield refused
    for members in graph.merged():
        first = members[0]
        yield InstructionSet(
            path=path,
            own=graph.ids[first],
            number=graph.numbers[first],
            image_ids=graph.images[first],
            rounds=tuple(pair for pair in (graph.rounds[member] for member in members) if pair is not None),
            sources=tuple(RecordSource(file=file, record=graph.record(member)) for member in members),
            fields=fields_of_all(request, [graph.fields[member] for member in members]),
        )


def naming(request: Request) -> Callable[[str], str]:
    """The name of a CGD image: its own key in a base64 archive, or COCO's file name in a folder, zip or tar."""
    archives = any(path.suffix in (".json", ".parquet") for path in request.images)
    return str if archives else _coco_file


def _coco_file(image_id: str) -> str:
    """The COCO file of a CGD image. Raises RejectError for another id."""
    match = _CGD_KEY.fullmatch(image_id)
    if match is None:
        raise RejectError("bad_value", f"an image id is {show(image_id)}; expected CGD_IMG_<COCO's number>")
    return f"{int(match[1]):012}.jpg"


def image_group_of(image_id: str) -> str:
    """COCO's number for CGD; frames of one video share a group; otherwise the key itself."""
    match = _CGD_KEY.fullmatch(image_id)
    if match is not None:
        return coco_group(match[1])
    match = _FRAME_KEY.fullmatch(image_id)
    return match[1] if match is not None else image_id


@dataclass(slots=True)
class _InstructionGraph:
    """Instructions as columns, and the links between them. A rejected one has no rounds, but still links others."""

    ids: list[str | None] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    images: list[tuple[str, ...]] = field(default_factory=list)
    related: list[tuple[str, ...]] = field(default_factory=list)
    rounds: list[tuple[str, str] | None] = field(default_factory=list)
    fields: list[Mapping[str, Scalar]] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def has(self, own: str) -> bool:
        return own in self.places and self.rounds[self.places[own]] is not None

    def add(self, own: str | None, number: int, images: tuple[str, ...], related: tuple[str, ...]) -> int:
        place = len(self.ids)
        self.ids.append(own)
        self.numbers.append(number)
        self.images.append(images)
        self.related.append(related)
        self.rounds.append(None)
        self.fields.append({})
        if own is not None and not self.has(own):
            self.places[own] = place
        return place

    def record(self, place: int) -> str:
        own = self.ids[place]
        return str(self.numbers[place]) if own is None else own

    def merged(self) -> Iterator[list[int]]:
        """Connected sets, in the file order of their first members."""
        parents = list(range(len(self.ids)))

        def root(place: int) -> int:
            while parents[place] != place:
                parents[place] = parents[parents[place]]
                place = parents[place]
            return place

        for place, names in enumerate(self.related):
            for name in names:
                other = self.places.get(name)
                if other is not None and self.images[other] == self.images[place]:
                    one, two = root(place), root(other)
                    parents[max(one, two)] = min(one, two)
        sets: dict[int, list[int]] = {}
        for place, pair in enumerate(self.rounds):
            if pair is not None:
                sets.setdefault(root(place), []).append(place)
        # A set's root may be a rejected instruction, so the order is that of the first remaining member.
        yield from sorted(sets.values())


def _add(graph: _InstructionGraph, request: Request, own: str | None, number: int, published: Any) -> None:
    record = record_of(published, request, KEYS)
    images = tuple(image_name(item, "an image id") for item in _ids(record, "image_ids"))
    related = tuple(item for item in _ids(record, "rel_ins_ids") if _is_id(item))
    if request.options.get("frames") != "even":
        check_image_count(len(images), request)
    place = graph.add(own, number, images, related)
    words = question(need(record, "instruction"), "instruction")
    graph.rounds[place] = (words, answer(need(record, "answer")))
    if request.filter_fields:
        graph.fields[place] = filter_fields(request, published)


def _ids(record: dict[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    if value is None:
        return []
    if type(value) is not list:
        raise RejectError("wrong_type", f"{key} is {show(value)}; expected an array of ids")
    return value


def _is_id(item: Any) -> bool:
    if type(item) is not str:
        raise RejectError("wrong_type", f"an item of rel_ins_ids is {show(item)}; expected an id")
    return True


def _conversation(
    request: Request, identities: Identities, instructions: InstructionSet, name_of: Callable[[str], str]
) -> Conversation:
    shown = _evenly(instructions.image_ids, request.max_images)
    images = tuple(Image(name=name_of(image_id)) for image_id in shown)
    return Conversation(
        id=identities.claim(identities.label(instructions.path), instructions.own, instructions.number),
        turns=turns_of(instructions.rounds, images),
        sources=instructions.sources,
        groups=tuple(dict.fromkeys(image_group_of(image_id) for image_id in shown)),
        notes=("frames_cut",) if len(shown) < len(instructions.image_ids) else (),
        fields=instructions.fields,
    )


def turns_of(rounds: tuple[tuple[str, str], ...], images: tuple[Image, ...]) -> tuple[Turn, ...]:
    """Questions and answers; the images come before the first question."""
    turns: list[Turn] = []
    for ask, reply in rounds:
        turns.append(Turn(role="user", parts=(ask,) if turns else (*images, ask)))
        turns.append(Turn(role="assistant", parts=(reply,)))
    return tuple(turns)


def _evenly(image_ids: tuple[str, ...], count: int) -> tuple[str, ...]:
    """At most `count` frames, evenly spaced, with the first and the last."""
    if len(image_ids) <= count:
        return image_ids
    if count < 2:
        return image_ids[:count]
    last = len(image_ids) - 1
    return tuple(image_ids[index * last // (count - 1)] for index in range(count))
