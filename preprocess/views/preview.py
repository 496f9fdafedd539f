"""Show the conversations of a dataset as text, before a build.

This needs no tokenizer. A record that cannot become a sample is shown with its reason, as in a build. So is an image
that cannot be read, below the conversation that shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.text import Text

from dst import Message, Rendered, Template, TemplateError, load_template
from dst.common.config import build
from dst.common.yaml_files import override
from dst.image_places import loses_image_places
from preprocess.adapters.base import Tally
from preprocess.adapters.lookup import read_records
from preprocess.blend.config import Blend, Dataset, check_blend
from preprocess.blend.inputs import find_inputs
from preprocess.blend.resolve import request_of
from preprocess.compiler.input_digests import stamp
from preprocess.compiler.messages import messages_of
from preprocess.compiler.report import counts_text
from preprocess.conversation import Conversation, Reject, to_tools
from preprocess.errors import ConfigError
from preprocess.terminal import cell, results
from preprocess.views.inspect import TRAINED
from preprocess.views.preview_images import PreviewImages


def print_rendered(adapter: str, root: Path, *, limit: int, template: str, settings: Sequence[str]) -> None:
    """Conversations of a dataset, rendered without a tokenizer (its end token is shown as </s>).

    Raises ConfigError for an unknown adapter or setting, or a folder without such a dataset; TemplateError for an
    unknown or broken template. A conversation that the template refuses is shown as refused.
    """
    dataset = _dataset(adapter, root, settings)
    blend = Blend(tokenizer="", datasets=(dataset,))
    problems = [problem.removeprefix("datasets.0 (render).") for problem in check_blend(blend)]
    if problems:
        raise ConfigError(problems)
    chosen = load_template(template, dataset.variables)
    inputs = find_inputs(blend, Path(), need_images=False)[dataset.name]
    request = request_of(blend, dataset, inputs)
    for path in inputs.annotations:
        stamp(path)  # opening a pipe or a device would wait
    console = results()
    expected = f"none of {', '.join(dataset.spec.images)} is below {inputs.root}; set images: to where they are"
    with TemporaryDirectory(prefix="dsvl-render-") as cache:
        images = PreviewImages(inputs.images, expected, Path(cache), request.frames)
        for item in islice(read_records(dataset.adapter, request), limit):
            if isinstance(item, Reject):
                _print_reject(console, item)
            else:
                _print_conversation(console, item, chosen, dataset.prompt, images)
    _print_tally(console, request.tally)


def _print_tally(console: Console, tally: Tally) -> None:
    if tally.forms:
        console.print(cell(f"forms: {counts_text(tally.forms)}"))
    if tally.ignored_keys:
        console.print(cell(f"ignored keys: {counts_text(tally.ignored_keys)}"))


def _dataset(adapter: str, root: Path, settings: Sequence[str]) -> Dataset:
    tree: dict[str, Any] = {"name": "render", "adapter": adapter, "root": str(root), "samples": "all"}
    override(tree, settings)
    dataset, problems = build(Dataset, tree)
    if problems or dataset is None:
        raise ConfigError(problems)
    return dataset


def _print_reject(console: Console, reject: Reject) -> None:
    where = f"{reject.source.file} {reject.source.record}"
    console.print(cell(f"reject {where}: {reject.reason}: {reject.detail}\n", style="red"))


def _print_conversation(
    console: Console, conversation: Conversation, template: Template, prompt: str | None, images: PreviewImages
) -> None:
    messages, tools = messages_of(conversation, prompt), to_tools(conversation)

    def render(messages: Sequence[Message]) -> Rendered:
        return template.render(messages, bos_token="", eos_token="</s>", tools=tools)

    try:
        rendered = render(messages)
        is_moved = loses_image_places(messages, rendered.text, lambda other: render(other).text)
    except TemplateError as error:
        for source in conversation.sources:
            _print_reject(console, Reject(reason="template", source=source, detail=str(error)))
        return
    console.print(cell(conversation.id, style="bold"))
    for number, image in enumerate(conversation.images, start=1):
        found = images.line(image)
        words = f"{found.reason}: {found.text}" if found.reason else found.text
        console.print(cell(f"  image {number}: {image.name}: {words}", style="red" if found.reason else ""))
    notes = [*conversation.notes, *(["images_moved"] if is_moved else [])]
    if notes:
        console.print(cell(f"  notes: {', '.join(notes)}"))
    text = Text()
    borders = [0, *(place for span in rendered.spans for place in span), len(rendered.text)]
    for number, (start, end) in enumerate(pairwise(borders)):
        text.append_text(cell(rendered.text[start:end], style=TRAINED if number % 2 else ""))
    console.print(text)
    console.print()
