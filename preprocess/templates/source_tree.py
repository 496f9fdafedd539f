"""A Jinja source as a tree with positions, so that a template is changed in a few places and stays as it is elsewhere.

Rule: positions are of `normalized(source)`. The text of a tag is what is between its signs: `{%- if x +%}` has `-` and
`+`. What a tag's sign strips belongs to no node; the value of a text is what Jinja writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import jinja2
import jinja2.nodes

from dst.jinja_environment import Environment

_OPENING = frozenset({"autoescape", "block", "call", "filter", "for", "generation", "if", "macro", "with"})
_BUFFERED = frozenset({"block", "call", "filter", "macro", "set"})
"""Blocks that print into a buffer, or elsewhere"""


@dataclass(frozen=True, slots=True)
class Atom:
    """A piece of text that is written at once: a literal text, or an expression.

    joint: the operator before it in its output, `+` or `~`; empty for the first.
    """

    source: str
    literal: str | None
    joint: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Text amid tags. end: where the next tag begins."""

    start: int
    end: int
    atoms: tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Tag:
    """`{{ }}`, `{% %}` or `{# #}`, from `start` to `end`. name: of a block, else its opening bracket.

    atoms: of an output, whose values joined are its text.
    """

    start: int
    end: int
    left: str
    right: str
    name: str
    inner: str
    atoms: tuple[Atom, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A block with its bodies: those of `if` between its `elif` and `else`. tags: one more than bodies."""

    tags: tuple[Tag, ...]
    bodies: tuple[tuple[Node, ...], ...]

    @property
    def start(self) -> int:
        return self.tags[0].start

    @property
    def end(self) -> int:
        return self.tags[-1].end

    @property
    def is_buffered(self) -> bool:
        return self.tags[0].name in _BUFFERED


Node = Text | Tag | Block


def normalized(source: str) -> str:
    """The source as Jinja reads it: line breaks are `\\n`, and the last one is gone."""
    return re.sub(r"\r\n|\r", "\n", source).removesuffix("\n")


def read_tree(source: str) -> tuple[Node, ...]:
    """The nodes of a normalized source that Jinja can parse."""
    flat = list(_flat(source))
    nodes, rest = _nested(flat, 0)
    assert rest == len(flat), "a source that Jinja parsed has as many ends as beginnings"
    return nodes


def expression(atoms: Sequence[Atom]) -> str:
    """An expression of neighbouring atoms of one output."""
    return " ".join(f"{atom.joint} {atom.source}" if index else atom.source for index, atom in enumerate(atoms))


def literal_atom(text: str, joint: str = "") -> Atom:
    # Jinja does not join JSON's surrogate pairs, so that text beyond ASCII stays as it is.
    return Atom(json.dumps(text, ensure_ascii=False), text, joint)


def _flat(source: str) -> Iterator[Text | Tag]:
    environment = Environment()
    position, pending = 0, None
    opening: tuple[int, str] | None = None
    inner_start = 0
    words: list[tuple[str, str, int]] = []
    for _, kind, value in environment.lex(source):
        start = source.index(value, position)
        assert not source[position:start].strip(), "Jinja skips white space only"
        position = start + len(value)
        if kind in ("data", "raw_begin", "raw_end"):  # what a raw block holds is text like any other
            text_start, text = pending or (start, "")
            pending = (text_start, text + value if kind == "data" else text)
            continue
        if kind.endswith("_begin"):
            if pending is not None:
                yield Text(pending[0], start, (literal_atom(pending[1]),))
                pending = None
            opening, inner_start, words = (start, value), position, []
        elif kind.endswith("_end") and opening is not None:
            bracket, left = opening[1][:2], opening[1][2:]
            right = value[0] if value[0] in "+-" else ""
            inner = source[inner_start:start]
            names = [word for sort, word, _ in words if sort == "name"]
            is_output = bracket == "{{"
            name = names[0] if bracket == "{%" and names else bracket
            if name == "set" and ("operator", "=") in {(sort, word) for sort, word, _ in words}:
                name = "assign"
            atoms = _atoms(environment, source, words, inner_start, start) if is_output else ()
            yield Tag(opening[0], start + len(right) + 2, left, right, name, inner, atoms)
            opening = None
        elif kind not in ("whitespace", "comment"):
            words.append((kind, value, start))
    if pending is not None:
        yield Text(pending[0], len(source), (literal_atom(pending[1]),))


def _atoms(
    environment: Environment, source: str, words: Sequence[tuple[str, str, int]], start: int, end: int
) -> tuple[Atom, ...]:
    """An output such as `{{ a + 'b' ~ c }}`, cut at its operators, if it is such a chain."""
    root = _root(environment, source[start:end])
    cuts: list[tuple[int, str]] = []
    if isinstance(root, jinja2.nodes.Add | jinja2.nodes.Concat):
        depth = 0
        for kind, word, position in words:
            depth += (word in "([{") - (word in ")]}") if kind == "operator" else 0
            if kind == "operator" and word in "+~" and depth == 0:
                cuts.append((position, word))
    borders = [(start - 1, ""), *cuts, (end, "")]
    atoms = []
    for (before, joint), (after, _) in pairwise(borders):
        text = source[before + 1 : after].strip()
        part = _root(environment, text)
        value = part.value if isinstance(part, jinja2.nodes.Const) else None
        atoms.append(Atom(text, value if isinstance(value, str) else None, joint))
    return tuple(atoms)


def _root(environment: Environment, text: str) -> jinja2.nodes.Node:
    output = environment.parse("{{" + f" {text} " + "}}").body[0]
    assert isinstance(output, jinja2.nodes.Output)
    node = output.nodes[0]
    return jinja2.nodes.Const(node.data) if isinstance(node, jinja2.nodes.TemplateData) else node


def _nested(flat: Sequence[Text | Tag], index: int) -> tuple[tuple[Node, ...], int]:
    """The nodes up to the tag that ends the block they are in, and its index."""
    nodes: list[Node] = []
    while index < len(flat):
        node = flat[index]
        if isinstance(node, Text) or node.name not in (*_OPENING, "set"):
            if isinstance(node, Tag) and (node.name in ("elif", "else") or node.name.startswith("end")):
                break
            nodes.append(node)
            index += 1
            continue
        tags, bodies = [node], []
        while not tags[-1].name.startswith("end"):
            body, index = _nested(flat, index + 1)
            bodies.append(body)
            closing = flat[index]
            assert isinstance(closing, Tag)
            tags.append(closing)
        nodes.append(Block(tuple(tags), tuple(bodies)))
        index += 1
    return tuple(nodes), index
