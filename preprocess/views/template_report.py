"""What `dsvl-prep template` says of a folder's template: an example, what differs, and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import yaml
from rich.text import Text

from dst import IMAGE_TOKEN
from preprocess.templates.copy import TemplateCopy
from preprocess.templates.examples import SHOWN
from preprocess.terminal import cell, results
from preprocess.views.inspect import TRAINED

_TAKEN = {
    "any": "",
    "user parts": "lists of parts become text in all turns but those of users, which the original does not take",
    "parts": "texts become lists of parts, since the original takes no other contents",
    "texts": f"lists of parts become text, {IMAGE_TOKEN} and a line break for an image; the original takes no images",
}
_MARKS = {
    "none": "",
    "kept": "the original has marks of its own, which are right and stay",
    "replaced": "the original's own marks are replaced: they do not cover each answer from its prompt to its end token",
}


def print_copy(copy: TemplateCopy, written: Path | None) -> None:
    """written: the file of the copy, if one was written."""
    console = results()
    template, original = copy.marked.template, copy.reference.original
    console.print(cell(f"{copy.published.file}: trained text is green", style="bold"))
    rendered = template.render(SHOWN.messages, bos_token=original.bos_token, eos_token=original.eos_token)
    text = Text()
    borders = [0, *(border for span in rendered.spans for border in span), len(rendered.text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        text.append_text(cell(rendered.text[start:end], style=TRAINED if number % 2 else ""))
    console.print(text)
    console.print()
    for line in _notes(copy):
        console.print(cell(f"- {line}"))
    for line in _next(copy, written):
        console.print(cell(line))


def _notes(copy: TemplateCopy) -> Iterator[str]:
    reference, marked = copy.reference, copy.marked
    count = len(reference.abilities.examples)
    yield f"the texts and prompts of {count} conversations are those of the original, but for what is listed here"
    yield f"every answer ends in {reference.end_token}, which is trained"
    if reference.abilities.image != IMAGE_TOKEN:
        yield f"{IMAGE_TOKEN} is where the original has {reference.abilities.image}"
    if reference.adds_begin:
        yield f"the copy writes {reference.original.bos_token} first, which the folder's tokenizer puts there itself"
    if reference.adds_end:
        yield f"the copy writes {reference.end_token} after each answer; the original writes no token there"
    if marked.variables:
        names = ", ".join(marked.variables)
        yield f"left open by the original, and empty in the copy: {names}; --set NAME=VALUE sets one"
    if marked.lacks:
        yield f"it cannot express {' or '.join(marked.lacks)}; a build rejects such records"
    for line in (_TAKEN[reference.abilities.contents], _MARKS[marked.marks]):
        if line:
            yield line
    if not copy.published.has_tokenizer:
        yield "the folder has no tokenizer.json, so the copy was not tried with a tokenizer"


def _next(copy: TemplateCopy, written: Path | None) -> Iterator[str]:
    if copy.builtin is not None:
        yield f"the built-in template {copy.builtin.name} renders the same texts; use it in the blend:"
        yield f"  template: {copy.builtin.name}"
        if copy.builtin.variables:
            variables = yaml.safe_dump(dict(copy.builtin.variables), default_flow_style=True, width=2**30)
            yield f"  variables: {variables.strip()}"
    if written is not None:
        yield f"wrote {written}; use it in the blend:"
        yield f"  template: ./{written.name}" if not written.is_absolute() else f"  template: {written}"
