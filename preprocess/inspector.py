"""Look at samples: those of a build, and those a dataset would give.

What is shown of a build comes from its ids alone, through its own tokenizer: it is what the model will see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from dst import IGNORE, TextTokenizer, load_template, load_tokenizer
from preprocess.adapter import Request
from preprocess.config import Blend, Dataset, check_blend, find_inputs
from preprocess.conversation import Reject, to_messages
from preprocess.errors import ConfigError, DataError
from preprocess.ingest import stamp
from preprocess.strict import build as build_config
from preprocess.strict import override
from preprocess.terminal import results
from shards import Sample, open_build

_TRAINED = "bold green"
_IMAGE = "bold cyan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """A sample with its text, in runs of (text, trained)."""

    sample: Sample
    dataset: str
    split: str
    runs: tuple[tuple[str, bool], ...]

    def to_json(self) -> dict[str, Any]:
        metadata = self.sample.metadata
        return {
            "key": self.sample.key,
            "id": metadata["id"],
            "dataset": self.dataset,
            "source": metadata["sources"][0],
            "sources": metadata["sources"],
            "split": self.split,
            "text": "".join(text for text, _ in self.runs),
            "ids": self.sample.ids.tolist(),
            "labels": self.sample.labels.tolist(),
            "images": [
                {**image, "sha256": hashlib.sha256(data).hexdigest()}
                for image, data in zip(metadata["images"], self.sample.images, strict=True)
            ],
        }


def inspect_samples(
    build: Path, *, dataset: str | None = None, key: str | None = None, limit: int | None = None
) -> Iterator[Inspected]:
    """Samples of a build, in its order. Raises DataError if no sample matches, ShardError if one is damaged."""
    opened = open_build(build)
    tokenizer = load_tokenizer(build / "tokenizer")
    shown = 0
    for name, split, shard in opened.shards(dataset=dataset):
        rows = (
            range(len(shard)) if key is None else [row for row, found in enumerate(shard.sample_keys()) if found == key]
        )
        for row in rows:
            if shown == limit:
                return
            sample = shard[row]
            yield Inspected(sample=sample, dataset=name, split=split, runs=_runs(sample, tokenizer))
            shown += 1
    if not shown:
        raise DataError(
            f"{build}: no sample" + (f" with key {key}" if key else "") + (f" in {dataset}" if dataset else "")
        )


def print_sample(inspected: Inspected) -> None:
    """Trained text is green, image placeholders are cyan; every image is listed with its name and size."""
    console = results()
    sample, metadata = inspected.sample, inspected.sample.metadata
    sources = ", ".join(f"{source['file']} {source['record']}" for source in metadata["sources"])
    console.print(Text(f"{sample.key}  {inspected.split}  from {sources}", style="bold"))
    for number, (image, data) in enumerate(zip(metadata["images"], sample.images, strict=True), start=1):
        console.print(
            Text(f"  image {number}: {image['name']}  {image['width']} x {image['height']}  {len(data):,} bytes")
        )
    trained = int(np.count_nonzero(sample.labels != IGNORE))
    console.print(Text(f"  {len(sample.ids)} ids, {trained} trained"))
    if metadata.get("notes"):
        console.print(Text(f"  changed on the way: {', '.join(metadata['notes'])}"))
    console.print(_coloured(inspected.runs))
    console.print()


def print_rendered(adapter: str, root: Path, *, limit: int, template: str, settings: Sequence[str]) -> None:
    """Conversations of a dataset, rendered without a tokenizer (its end token is shown as </s>).

    Raises ConfigError for an unknown adapter, template or setting, or a folder without such a dataset.
    """
    tree: dict[str, Any] = {"name": "render", "adapter": adapter, "root": str(root), "samples": "all"}
    override(tree, settings)
    dataset, problems = build_config(Dataset, tree)
    if dataset is None:
        raise ConfigError(problems)
    blend = Blend(tokenizer="", datasets=(dataset,))
    problems = [problem.removeprefix("datasets.0 (render).") for problem in check_blend(blend)]
    if problems:
        raise ConfigError(problems)
    chosen = load_template(template, dataset.variables)
    inputs = find_inputs(blend, Path())[dataset.name]
    request = Request(
        root=inputs.root, annotations=inputs.annotations, images=inputs.images, options=dataset.all_options
    )
    for path in inputs.annotations:
        stamp(path)  # a pipe or a device would be waited for
    console = results()
    for item in islice(dataset.spec.read(request), limit):
        if isinstance(item, Reject):
            console.print(
                Text(f"reject {item.source.file} {item.source.record}: {item.reason}: {item.detail}\n", style="red")
            )
            continue
        rendered = chosen.render(to_messages(item), bos_token="", eos_token="</s>")
        console.print(Text(f"{item.id}", style="bold"))
        for number, image in enumerate(item.images, start=1):
            console.print(Text(f"  image {number}: {image.name}"))
        borders = [0, *(place for span in rendered.spans for place in span), len(rendered.text)]
        pieces = [rendered.text[start:end] for start, end in pairwise(borders)]
        console.print(_coloured([(piece, index % 2 == 1) for index, piece in enumerate(pieces)]))
        console.print()


def _runs(sample: Sample, tokenizer: TextTokenizer) -> tuple[tuple[str, bool], ...]:
    """Text of neighbouring tokens that are all trained or all not.

    Prefixes are decoded and compared, because a tokenizer may drop a space at the start of what it decodes.
    """
    trained = sample.labels != IGNORE
    ends = [*(np.flatnonzero(np.diff(trained.astype(np.int8))) + 1).tolist(), len(trained)]
    runs, before = [], ""
    for end in ends:
        text = tokenizer.decode(sample.ids[:end].tolist())
        runs.append((text[len(before) :], bool(trained[end - 1])))
        before = text
    return tuple(runs)


def _coloured(runs: Sequence[tuple[str, bool]]) -> Text:
    text = Text()
    for piece, trained in runs:
        text.append(piece, style=_TRAINED if trained else "")
    text.highlight_words(["<image>"], _IMAGE)
    return text
