"""Copies of a template's source with `{% generation %}` around its answers: several, of which one may be right.

An answer begins and ends at atoms of the source. The marks go around the nodes of one body that write all of it:

- split: an output or a text at the edge is cut in two, such as `{{ header + message['content'] }}`;
- captured: where that is not possible, the nodes print into a variable, which is cut at the length of its header.

Nodes that write other turns too are there twice, below a condition on the role.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from preprocess.templates.source_tree import Atom, Node, Tag, Text, expression, literal_atom
from preprocess.templates.tracing import Event, Place, Tracer, is_output

_ROLE = re.compile(r"\b([A-Za-z_]\w*)(?:\[['\"]role['\"]\]|\.role\b)")


@dataclass(frozen=True, slots=True)
class TracedAnswer:
    """Characters [start, end) of a traced text are to be trained."""

    events: Sequence[Event]
    start: int
    end: int

    @property
    def first(self) -> Event:
        return next(event for event in self.events if event.end > self.start and event.atom is not None)

    @property
    def last(self) -> Event:
        return next(event for event in self.events if event.end >= self.end and event.end > event.start)


@dataclass(frozen=True, slots=True)
class _Cut:
    """Before character `offset` of an atom of an output; offset 0 of an expression, whose length varies."""

    atom: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Region:
    """Nodes first to last of a body; the answer begins at a cut of the first and ends at one of the last, if any."""

    body: int
    first: int
    last: int
    start: _Cut | None
    end: _Cut | None


_Piece = tuple[str, str]
"""output, block, comment or source, and what is in it"""

_BRACKETS = {"output": ("{{", "}}"), "block": ("{%", "%}"), "comment": ("{#", "#}")}


def candidates(tracer: Tracer, answers: Sequence[TracedAnswer], *, add_end_token: bool) -> Iterator[str]:
    """Sources with marks, the simplest first. add_end_token: write `eos_token` at the end of each answer."""
    places = [(tracer.places[_number(answer.first)], tracer.places[_number(answer.last)]) for answer in answers]
    names = list(dict.fromkeys(_ROLE.findall(tracer.source)))
    conditions = [None, *(f"{name}['role'] == 'assistant'" for name in names if name != "messages")]
    ending: list[_Piece] = [("output", "eos_token")] if add_end_token else []
    groups = _groups(answers, places)
    if len(groups) > 1:
        regions = [_region(tracer, *group, _common(group[1])[-1]) for group in groups]
        kept = [region for region in regions if region is not None]
        if len(kept) == len(groups) and not _overlap(tracer, kept):
            for condition in conditions:
                yield _rewritten(tracer, kept, condition, ending)
    for body in reversed(_common(places)):
        region = _region(tracer, answers, places, body)
        if region is not None:
            for condition in conditions:
                yield _rewritten(tracer, [region], condition, ending)
        for condition in conditions:
            if captured := _captured(tracer, answers, places, body, condition, ending):
                yield captured


def _number(event: Event) -> int:
    assert event.atom is not None
    return event.atom


def _groups(
    answers: Sequence[TracedAnswer], places: Sequence[tuple[Place, Place]]
) -> list[tuple[list[TracedAnswer], list[tuple[Place, Place]]]]:
    """The answers that the same places write."""

    def key(index: int) -> tuple[int, int]:
        return _number(answers[index].first), _number(answers[index].last)

    grouped = groupby(sorted(range(len(answers)), key=key), key)
    return [([answers[i] for i in group], [places[i] for i in group]) for _, each in grouped if (group := list(each))]


def _common(places: Sequence[tuple[Place, Place]]) -> list[int]:
    """The bodies that are around all of the places, from the outermost."""
    chains = [[body for body, _ in place.steps] for pair in places for place in pair]
    return [bodies[0] for bodies in zip(*chains, strict=False) if len(set(bodies)) == 1]


def _overlap(tracer: Tracer, regions: Sequence[_Region]) -> bool:
    bodies = tracer.bodies
    ranges = sorted(
        (bodies[region.body][region.first].start, bodies[region.body][region.last].end) for region in regions
    )
    return any(before[1] > after[0] for before, after in pairwise(ranges))


def _index_in(place: Place, body: int) -> int:
    return next(index for number, index in place.steps if number == body)


def _region(
    tracer: Tracer, answers: Sequence[TracedAnswer], places: Sequence[tuple[Place, Place]], body: int
) -> _Region | None:
    """The nodes of a body that write the answers, if these begin and end at fixed places of them."""
    first = min(_index_in(start, body) for start, _ in places)
    last = max(_index_in(end, body) for _, end in places)
    starts: set[_Cut | None] = set()
    ends: set[_Cut | None] = set()
    for answer, (start, end) in zip(answers, places, strict=True):
        before = answer.start - answer.first.start
        if _index_in(start, body) == first:
            if before and (start.steps[-1][0] != body or start.atom.literal is None):
                return None
            starts.add(_Cut(start.index, before) if start.steps[-1][0] == body and (start.index or before) else None)
        within, length = answer.end - answer.last.start, answer.last.end - answer.last.start
        if _index_in(end, body) == last:
            if within < length and (end.steps[-1][0] != body or end.atom.literal is None):
                return None
            is_whole = end.steps[-1][0] != body or (within == length and end.is_last)
            ends.add(None if is_whole else _Cut(end.index + (within == length), within % length))
    if len(starts) != 1 or len(ends) != 1:
        return None
    return _Region(body, first, last, starts.pop(), ends.pop())


def _rewritten(tracer: Tracer, regions: Sequence[_Region], condition: str | None, ending: Sequence[_Piece]) -> str:
    source = tracer.source
    for region in sorted(regions, key=lambda region: tracer.bodies[region.body][region.first].start, reverse=True):
        nodes = tracer.bodies[region.body][region.first : region.last + 1]
        before, core, after = _cut(tracer.source, nodes, region)
        marked = [("block", "generation"), *core, *ending, ("block", "endgeneration")]
        pieces = [*before, *_either(condition, marked, core), *after]
        source = source[: nodes[0].start] + _joined(pieces, nodes) + source[nodes[-1].end :]
    return source


def _captured(
    tracer: Tracer,
    answers: Sequence[TracedAnswer],
    places: Sequence[tuple[Place, Place]],
    body: int,
    condition: str | None,
    ending: Sequence[_Piece],
) -> str | None:
    """The source in which the nodes print into a variable first; None if header and end are not always equally long."""
    first = min(_index_in(start, body) for start, _ in places)
    last = max(_index_in(end, body) for _, end in places)
    lengths = {_around(tracer, answer, body, range(first, last + 1)) for answer in answers}
    if len(lengths) != 1:
        return None
    head, tail = lengths.pop()
    nodes = tracer.bodies[body][first : last + 1]
    name = next(name for name in ("turn", "turn_text", "written_turn") if not re.search(rf"\b{name}\b", tracer.source))
    _, core, _ = _cut(tracer.source, nodes, _Region(body, first, last, None, None))
    stop = f"-{tail}" if tail else ""
    marked: list[_Piece] = [
        ("block", f"set {name}"),
        *core,
        ("block", "endset"),
        *([("output", f"{name}[:{head}]")] if head else []),
        ("block", "generation"),
        ("output", f"{name}[{head or ''}:{stop}]"),
        *ending,
        ("block", "endgeneration"),
        *([("output", f"{name}[-{tail}:]")] if tail else []),
    ]
    pieces = _either(condition, marked, core)
    return tracer.source[: nodes[0].start] + _joined(pieces, nodes) + tracer.source[nodes[-1].end :]


def _around(tracer: Tracer, answer: TracedAnswer, body: int, region: range) -> tuple[int, int]:
    """How many characters the nodes of a region write before and after an answer, in one run of their body."""
    events = list(answer.events)
    entries = [index for index, event in enumerate(events) if event.atom is None and event.body == body]
    begin = max(index for index in entries if events[index].start <= answer.start)
    start, end = answer.start, answer.end
    for event in events[begin + 1 :]:
        if event.atom is None:
            if event.body == body:
                break
            continue
        steps = tracer.places[event.atom].steps
        if not any(number == body and index in region for number, index in steps):
            continue
        start, end = min(start, event.start), max(end, event.end)
    return answer.start - start, end - answer.end


def _either(condition: str | None, marked: Sequence[_Piece], plain: Sequence[_Piece]) -> list[_Piece]:
    if condition is None:
        return list(marked)
    return [("block", f"if {condition}"), *marked, ("block", "else"), *plain, ("block", "endif")]


def _cut(source: str, nodes: Sequence[Node], region: _Region) -> tuple[list[_Piece], list[_Piece], list[_Piece]]:
    """What the nodes write before, in and after the answer. Text next to a new tag becomes a literal in an output."""
    before: list[_Piece] = []
    after: list[_Piece] = []
    front: list[_Piece] = []
    back: list[_Piece] = []
    low, high = 0, len(nodes)
    if len(nodes) == 1 and (region.start or region.end or isinstance(nodes[0], Text)):
        rest, right = _divided(_atoms(nodes[0]), region.end)
        left, core = _divided(rest, region.start or _Cut(0, 0))
        return _output(left), _output(core), _output(right)
    if region.start:
        left, rest = _divided(_atoms(nodes[0]), region.start)
        before, front, low = _output(left), _output(rest), 1
    if region.end:
        rest, right = _divided(_atoms(nodes[-1]), region.end)
        back, after, high = _output(rest), _output(right), high - 1
    while low < high and isinstance(nodes[low], Text):
        front += _output(_atoms(nodes[low]))
        low += 1
    while low < high and isinstance(nodes[high - 1], Text):
        high -= 1
        back = [*_output(_atoms(nodes[high])), *back]
    middle: list[_Piece] = [("source", source[nodes[low].start : nodes[high - 1].end])] if low < high else []
    return before, [*front, *middle, *back], after


def _atoms(node: Node) -> tuple[Atom, ...]:
    assert isinstance(node, Text | Tag)
    assert is_output(node)
    return node.atoms


def _divided(atoms: Sequence[Atom], cut: _Cut | None) -> tuple[list[Atom], list[Atom]]:
    """The atoms before and after a cut; without one, all are before it."""
    if cut is None:
        return list(atoms), []
    before, after = list(atoms[: cut.atom]), list(atoms[cut.atom :])
    if cut.offset:
        text = after[0].literal
        assert text is not None
        before.append(literal_atom(text[: cut.offset], after[0].joint))
        after[0] = literal_atom(text[cut.offset :], "+")
    return before, after


def _output(atoms: Sequence[Atom]) -> list[_Piece]:
    return [("output", expression(atoms))] if atoms else []


def _joined(pieces: Sequence[_Piece], nodes: Sequence[Node]) -> str:
    """Tags that strip everything between them, and outside what the nodes strip that they replace."""
    if pieces[-1][0] == "output" and not is_output(nodes[-1]):
        pieces = [*pieces, ("comment", "")]  # an output cannot strip a single line break, as a block does
    written = []
    for index, (kind, inner) in enumerate(pieces):
        if kind == "source":
            written.append(inner)
            continue
        left = _sign(nodes[0], kind, "left") if index == 0 else "-"
        right = _sign(nodes[-1], kind, "right") if index == len(pieces) - 1 else "-"
        opening, closing = _BRACKETS[kind]
        written.append(f"{opening}{left} {inner} {right}{closing}")
    return "".join(written)


def _sign(node: Node, kind: str, side: str) -> str:
    """The sign by which a new tag strips at its outer side what the node's own tag strips there."""
    if isinstance(node, Text):
        return "-"
    tag = node if isinstance(node, Tag) else node.tags[0 if side == "left" else -1]
    sign = tag.left if side == "left" else tag.right
    return sign if sign or (kind == "output") == (tag.name == "{{") else "+"
