"""Which place of a template writes which part of its text.

Rule: every atom of the source is replaced by a call that notes its number and its text, so the events of a render,
joined, are its text. What is printed into a buffer (macros, set and filter blocks) is part of the atom that writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dst import Message, TemplateError
from dst.jinja_environment import Environment
from dst.messages import Tools
from dst.template import FAILURES
from preprocess.templates.source_tree import Atom, Block, Node, Tag, Text, literal_atom, read_tree

_NOTE = "note_piece"


@dataclass(frozen=True, slots=True)
class Event:
    """Characters [start, end) of the text were written by an atom. atom: its number; None where a body begins."""

    atom: int | None
    body: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an atom is: the bodies around it from the outermost, with the index of the node in each."""

    steps: tuple[tuple[int, int], ...]
    index: int
    """Among the atoms of its node"""
    atom: Atom
    is_last: bool
    """Of its node"""


class Tracer:
    """A template's source as a tree, and traces of its renders."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.bodies: list[tuple[Node, ...]] = []
        self.places: list[Place] = []
        environment = Environment()
        environment.globals[_NOTE] = self._note
        self._events: list[Event] = []
        self._length = 0
        self._compiled = environment.from_string(self._instrumented(read_tree(source), ()))

    def trace(self, messages: Sequence[Message], variables: Mapping[str, Any], tools: Tools | None) -> list[Event]:
        """The events of a render. Raises TemplateError if some text was written by no atom, or the render fails."""
        self._events, self._length = [], 0
        try:
            text = self._compiled.render({"messages": list(messages), "tools": tools, **variables})
        except FAILURES as error:
            raise TemplateError(str(error)) from None
        if self._length != len(text):
            raise TemplateError("a filter block or a macro writes its turns")
        return self._events

    def _note(self, body: int, atom: int | None = None, value: object = "") -> str:
        text = str(value)
        self._events.append(Event(atom, body, self._length, self._length + len(text)))
        self._length += len(text)
        return text

    def _instrumented(self, nodes: tuple[Node, ...], outer: tuple[tuple[int, int], ...]) -> str:
        body = len(self.bodies)
        self.bodies.append(nodes)
        written = [f"{{{{- {_NOTE}({body}) -}}}}"]
        for index, node in enumerate(nodes):
            steps = (*outer, (body, index))
            if isinstance(node, Block) and node.is_buffered:
                written.append(self.source[node.start : node.end])
            elif isinstance(node, Block):
                for number, tag in enumerate(node.tags):
                    written.append(f"{{%- {tag.inner} -%}}")
                    if number < len(node.bodies):
                        written.append(self._instrumented(node.bodies[number], steps))
            elif isinstance(node, Text) or node.name == "{{":
                for number, atom in enumerate(node.atoms):
                    written.append(f"{{{{- {_NOTE}({body}, {len(self.places)}, {_value(atom)}) -}}}}")
                    self.places.append(Place(steps, number, atom, number == len(node.atoms) - 1))
            elif node.name != "{#":
                written.append(f"{{%- {node.inner} -%}}")
        return "".join(written)


def _value(atom: Atom) -> str:
    return literal_atom(atom.literal).source if atom.literal is not None else f"({atom.source})"


def is_output(node: Node) -> bool:
    return isinstance(node, Text) or (isinstance(node, Tag) and node.name == "{{")
