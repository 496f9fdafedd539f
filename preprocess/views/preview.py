"""Show the conversations of a dataset as text, before a build.

This needs no tokenizer. A record that cannot become a sample is shown with its reason, as in a build. So is an image
that cannot be read, below the conversation that shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from preprocess.adapters.lookup import read_records
from preprocess.blend.config import Blend, Dataset
from preprocess.blend.inputs import find_inputs
from preprocess.blend.load import check_blend, load_blend
from preprocess.blend.resolve import find_template, request_of
from preprocess.compiler.input_digests import stamp
from preprocess.compiler.messages import messages_of
from preprocess.conversation import Conversation, Reject, to_tools
from preprocess.errors import ConfigError
from preprocess.terminal import cell, results
from preprocess.views.inspect import TRAINED
from preprocess.views.preview_images import PreviewImages
from preprocess.views.preview_summary import Sampled, summary

FIRST_RECORDS = 100
"""How many records the summary below the conversations is about"""


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
    _print_dataset(blend, dataset, Path(), load_template(template, dataset.variables), limit)


def print_blend(path: Path, *, only: str | None, limit: int, template: str | None, settings: Sequence[str]) -> None:
    """As `print_rendered`, for the datasets of a blend file, or `only` one of them, with their own templates."""
    blend = load_blend(path, settings)
    names = [dataset.name for dataset in blend.datasets]
    if only is not None and only not in names:
        raise ConfigError([f"--dataset {only}: {path.name} has no such dataset; it has {', '.join(names)}"])
    for dataset in blend.datasets:
        if only in (None, dataset.name):
            console = results()
            console.print(cell(f"{dataset.name}: {dataset.adapter} in {dataset.root}", style="bold underline"))
            base = path.absolute().parent
            chosen = load_template(template) if template is not None else find_template(blend, dataset, base)
            _print_dataset(replace(blend, datasets=(dataset,)), dataset, base, chosen, limit)
            console.print()


def _print_dataset(blend: Blend, dataset: Dataset, base: Path, template: Template, limit: int) -> None:
    """The first conversations, and below them what becomes of the first records."""
    inputs = find_inputs(blend, base, need_images=False)[dataset.name]
    request = request_of(blend, dataset, inputs)
    for path in inputs.annotations:
        stamp(path)  # opening a pipe or a device would wait
    console = results()
    expected = f"none of {', '.join(dataset.spec.images)} is below {inputs.root}; set images: to where they are"
    sampled = Sampled()
    with TemporaryDirectory(prefix="dsvl-render-") as cache:
        images = PreviewImages(inputs.images, expected, Path(cache), request.frames)
        records = islice(read_records(dataset.adapter, request), max(limit, FIRST_RECORDS))
        for number, item in enumerate(sampled.count(records, dataset)):
            if number >= limit:
                continue
            if isinstance(item, Reject):
                _print_reject(console, item)
            else:
                _print_conversation(console, item, template, dataset.prompt, images)
    if sampled.records > limit:
        console.print(f"of the first {sampled.records:,} records:")
    for line in summary(sampled, request, blend, dataset):
        console.print(cell(line))


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
