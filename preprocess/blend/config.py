"""blend.yaml: which datasets, how much of each, with which template, tokenizer and image policy.

Everything that can be checked without reading data is checked here, all problems at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from dst.common.config import build
from dst.common.config_class import FreeKeys, Positive, Share, UnknownKeys, config_class
from dst.common.suggest import nearest
from dst.common.yaml_files import override, read_yaml
from preprocess.adapters.base import Adapter, Option
from preprocess.adapters.lookup import find_adapter
from preprocess.blend.evaluation_sets import EvaluationSet, check_evaluation_sets
from preprocess.blend.fetch import Fetch
from preprocess.errors import ConfigError
from preprocess.filters.rules import Filter, filter_problems
from preprocess.images.prepare import FrameChoice, ImagePolicy

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")

IGNORE = "ignore"
"""A value of a dataset's `keys`."""

Amount = Annotated[float, Gt(0)]
Dedupe = Literal["off", "exact", "near"]


@config_class
class Limits:
    max_length: Positive = 4096
    """Longest sample: text tokens + images x image_tokens. Set it to the context length that you train with."""
    max_images: Positive = 8
    """Most images in a sample."""
    too_long: Literal["reject", "cut"] = "reject"
    """A first round above max_length: reject it, or cut the end of its answer, and with it the end token."""
    max_reject_share: Share = 0.2
    """The build fails if a dataset loses a larger share of its records. Raise it only after reading rejects.jsonl."""


@config_class
class Split:
    eval: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of image groups held out for evaluation, from 0 to below 1. No image is ever on both sides, nor a copy of
    its file under another name."""
    official: Literal["honour", "ignore"] = "honour"
    """honour: what a record or its file's name calls val or test goes to eval, with all that shares its images."""
    copies: Literal["bytes", "near"] = "bytes"
    """Which copies of an image stay on its side. bytes: equal files. near: resized and re-encoded copies too, by
    near_distance; with image.check: header, all images are decoded for it."""


@config_class
class ShardSize:
    max_samples: Positive = 8192
    """Most conversations in one shard; also the unit of work and of reuse."""
    max_images: Positive = 1024
    """Most images in one shard. Raise it for remote storage, where larger files transfer faster."""


@config_class
class Dataset:
    name: str
    """A name of your choice: a-z, 0-9, _ and -. The shards are named after it."""
    adapter: str
    """How to read it: a name that `dsvl-prep adapters` lists, or your own adapter as my_package.my_module:ADAPTER."""
    root: str = "."
    """The dataset's folder, relative to this file."""
    annotations: str | tuple[str, ...] = ()
    """Annotation files or patterns below root, where they differ from the adapter's own."""
    images: str | tuple[str, ...] = ()
    """Image folders or archives (.json, .zip, .tar, .parquet, .arrow) below root, if other than the adapter's own."""
    template: str | None = None
    """Another template for this dataset only; the blend's `variables` do not apply to it."""
    variables: FreeKeys | None = None
    """Values of the variables that this dataset's template leaves open."""
    prompt: str | None = None
    """Text to add to each question after a line break, such as "Answer with one word.", unless it ends with it."""
    concat: Positive = 1
    """Join up to this many conversations into one multi-image, multi-round sample."""
    share: Positive = 1
    """Join up to this many records about the same images into one sample with a branch for each (docs/sharing.md)."""
    samples: Positive | Literal["all"] | None = None
    """How many samples an epoch of the blend draws: a number, or all. Exactly one of samples, epochs and weight. With
    share, all three count records."""
    epochs: Amount | None = None
    """How often an epoch of the blend draws each sample: 0.5 draws every other one, 2 draws each twice."""
    weight: Amount | None = None
    """Mixture weight: the dataset's share of `total`, relative to the other weights."""
    split: Literal["train", "eval"] | None = None
    """train or eval: the side of all its records. Default: official splits and split.eval decide."""
    filter: Annotated[Filter | None, UnknownKeys("a rule for a key of the records goes below fields")] = None
    """Which records to keep, by their texts, images and fields; the others are rejects with the reason `filtered`."""
    first: Positive | None = None
    """Read only this many records, for a quick look at a large dataset."""
    dedupe: Dedupe | None = None
    """Another value of the blend's `dedupe` for this dataset's records."""
    frames: FrameChoice | None = None
    """Another value of `image.frames` for this dataset: even:8 shows 8 frames of each video (docs/videos.md)."""
    options: FreeKeys = field(default_factory=dict)
    """Settings of the adapter; `dsvl-prep adapters` lists them."""
    fields: dict[str, str] = field(default_factory=dict)
    """Your names of keys in records and messages -> the adapter's: {conversation: messages, speaker: role}."""
    roles: dict[str, Literal["user", "assistant", "system", "tool"]] = field(default_factory=dict)
    """Your names of roles -> user, assistant, system or tool: {patient: user, doctor: assistant}."""
    keys: dict[str, str] = field(default_factory=dict)
    """Keys that the build refuses to drop -> ignore, to leave them out, or the adapter's name of the same thing."""

    @property
    def spec(self) -> Adapter:
        return find_adapter(self.adapter)

    @property
    def all_keys(self) -> dict[str, str | None]:
        """`fields` and `keys` together: the dataset's own name -> the adapter's, or None to ignore it."""
        return {**self.fields, **{name: None if ours == IGNORE else ours for name, ours in self.keys.items()}}

    @property
    def all_options(self) -> dict[str, Any]:
        return {name: self.options.get(name, option.default) for name, option in self.spec.options.items()}


@config_class
class Blend:
    tokenizer: str
    """A folder with tokenizer.json and tokenizer_config.json, relative to this file, or a hub id."""
    datasets: Annotated[tuple[Dataset, ...], MinLen(1)]
    """The datasets, and how much of each."""
    template: str = "visualchat"
    """visualchat, vicuna, llama2, llama3, chatml, plain, or the path of a .jinja file."""
    variables: FreeKeys = field(default_factory=dict)
    """Values of the variables that the template leaves open, such as system_prompt."""
    add_tokens: tuple[str, ...] = ()
    """Control tokens to add to the tokenizer, if the template writes some that it lacks."""
    image_tokens: Positive = 256
    """Embeddings of one image in the model: 256 with QWen-VL's resampler, 576 for the patches of ViT-L/14 at 336."""
    image: ImagePolicy = field(default_factory=ImagePolicy)
    """How each image is checked and stored."""
    limits: Limits = field(default_factory=Limits)
    """Upper limits of a sample."""
    split: Split = field(default_factory=Split)
    """What is held out for evaluation."""
    shard: ShardSize = field(default_factory=ShardSize)
    """The size of the files."""
    fetch: Fetch = field(default_factory=Fetch)
    """Images that records name by URL."""
    dedupe: Dedupe = "off"
    """Reject records that repeat another one of any dataset: equal texts about equal image files (exact), or about
    images that look the same (near). One of them stays: that of the eval side, or else the first."""
    decontaminate: tuple[EvaluationSet, ...] = ()
    """Evaluation sets whose images and questions must not be trained."""
    near_distance: Annotated[int, Ge(0), Le(31)] = 31
    """Images look the same if at most this many of 256 bits of their perceptual hashes differ (docs/duplicates.md)."""
    total: Positive | None = None
    """Samples in an epoch of the blend, over all datasets that have a weight."""
    seed: int = 0
    """Every random choice depends on it: prompts, splits, frames."""
    out: str | None = None
    """The build folder, relative to this file, or a URL. --out overrides it."""
    engine: Literal["process", "ray"] = "process"
    """process: workers on this machine. ray: a Ray cluster with the same files mounted. The shards are identical."""

    def frames_for(self, dataset: Dataset) -> str:
        """What is shown of the dataset's animations and videos."""
        return dataset.frames or self.image.frames


def load_blend(path: Path, settings: Sequence[str] = ()) -> Blend:
    """Read and check a blend file with `a.b=value` settings applied. Raises ConfigError with all problems."""
    tree = read_yaml(path)
    override(tree, settings)
    blend, problems = build(Blend, tree, check=check_blend)
    if problems or blend is None:
        raise ConfigError([f"{path.name}: {problem}" for problem in problems])
    return blend


def resolved(blend: Blend) -> dict[str, Any]:
    """The whole configuration as plain data, without what cannot change the result: `out`, `engine`, `fetch`."""
    tree = dataclasses.asdict(blend)
    del tree["out"], tree["engine"], tree["fetch"]
    return tree


def check_blend(blend: Blend) -> list[str]:
    """Problems between keys, one line each."""
    problems: list[str] = []

    def want(holds: bool, where: str, got: object, expected: str) -> None:
        if not holds:
            problems.append(f"{where}: got {got}; expected {expected}")

    names = [dataset.name for dataset in blend.datasets]
    weighted = [dataset for dataset in blend.datasets if dataset.weight is not None]
    for index, dataset in enumerate(blend.datasets):
        where = f"datasets.{index} ({dataset.name})"
        want(bool(_NAME.fullmatch(dataset.name)), f"{where}.name", dataset.name, "1 to 40 of a-z, 0-9, _ and -")
        want(names.count(dataset.name) == 1, f"{where}.name", f"{dataset.name} twice", "a name of its own")
        want(dataset.prompt is None or bool(dataset.prompt.strip()), f"{where}.prompt", "a blank text", "a text")
        amounts = {key: getattr(dataset, key) for key in ("samples", "epochs", "weight")}
        given = {key: amount for key, amount in amounts.items() if amount is not None}
        got = " and ".join(given) or "no amount"
        if dataset.split == "eval":
            expected = "no amount, or samples: all, since split: eval keeps the dataset out of training"
            want(given in ({}, {"samples": "all"}), where, got, expected)
        else:
            want(len(given) == 1, where, got, "exactly one of samples, epochs and weight")
        want(
            dataset.share == 1 or dataset.concat == 1,
            where,
            f"share: {dataset.share} and concat: {dataset.concat}",
            "one of them: share keeps records apart, concat lets later ones see earlier ones",
        )
        if dataset.filter is not None:
            problems += filter_problems(dataset.filter, f"{where}.filter")
        try:
            adapter = find_adapter(dataset.adapter, f"{where}.adapter")
            problems += _check_options(dataset, adapter.options, where)
            problems += _check_keys(dataset, adapter, where)
        except ConfigError as error:
            problems += error.problems
    problems += check_evaluation_sets(blend.decontaminate)
    if weighted and blend.total is None:
        problems.append(f"total: missing; datasets with a weight ({weighted[0].name}) share out a total")
    if blend.total is not None:
        want(bool(weighted), "total", blend.total, "no total, since no dataset has a weight")
    return problems


def _check_options(dataset: Dataset, options: Mapping[str, Option], where: str) -> list[str]:
    problems = []
    for name, value in dataset.options.items():
        option = options.get(name)
        if option is None:
            known = ", ".join(options) or "none"
            hint = nearest(name, options) or f"; {dataset.adapter} has: {known}"
            problems.append(f"{where}.options.{name}: unknown option{hint}")
        elif option.choices and value not in option.choices:
            choices = ", ".join(map(str, option.choices))
            problems.append(
                f"{where}.options.{name}: got {value!r}; expected one of {choices}{nearest(str(value), option.choices)}"
            )
        elif not option.choices and not _same_type(value, option.default):
            expected = (
                "a list of texts, none of them blank" if _is_list(option.default) else f"the kind of {option.default!r}"
            )
            problems.append(f"{where}.options.{name}: got {value!r}; expected {expected}")
    return problems


def _check_keys(dataset: Dataset, adapter: Adapter, where: str) -> list[str]:
    """Problems of `fields` and `keys`: each name once, and only names that the adapter reads."""
    problems = [
        f"{where}.keys.{name}: is in fields too; expected it once" for name in dataset.keys if name in dataset.fields
    ]
    for setting, names in (("fields", dataset.fields), ("keys", dataset.keys)):
        if names and not adapter.keys:
            problems.append(f"{where}.{setting}: adapter {dataset.adapter} does not map keys; remove it")
            continue
        for name, ours in names.items():
            if ours not in adapter.keys and (setting, ours) != ("keys", IGNORE):
                known = ", ".join(sorted(adapter.keys))
                other = f" {IGNORE}, to leave it out, or" if setting == "keys" else ""
                hint = nearest(ours, [*adapter.keys, *([IGNORE] if other else [])]) or f": {known}"
                if ours == IGNORE:
                    hint = f"; to leave {name} out, write it into `keys`"
                expected = f"expected{other} a key that {dataset.adapter} reads"
                problems.append(f"{where}.{setting}.{name}: got {ours}; {expected}{hint}")
    if dataset.roles and adapter.keys and "role" not in adapter.keys:
        problems.append(f"{where}.roles: adapter {dataset.adapter} reads no names of roles; remove it")
    return problems


def _same_type(value: object, default: object) -> bool:
    if _is_list(default):
        return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)
    return type(value) is type(default)


def _is_list(default: object) -> bool:
    return isinstance(default, Sequence) and not isinstance(default, str)
