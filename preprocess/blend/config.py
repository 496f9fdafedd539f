"""blend.yaml: which datasets, how much of each, with which template, tokenizer and image policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from dst.common.config_class import FreeKeys, Positive, Share, UnknownKeys, config_class
from preprocess.adapters.base import Adapter
from preprocess.adapters.lookup import find_adapter
from preprocess.blend.evaluation_sets import EvaluationSet
from preprocess.blend.fetch import Fetch
from preprocess.filters.rules import Filter
from preprocess.images.prepare import FrameChoice, ImagePolicy

IGNORE = "ignore"
"""A value of a dataset's `keys`."""

_OF_TILES = frozenset(("tiles", "tiles_multi", "grid", "max_tiles"))

Amount = Annotated[float, Gt(0)]
Dedupe = Literal["off", "exact", "near"]


@config_class
class Limits:
    max_length: Positive = 4096
    """Longest sample: text tokens + tiles x image_tokens. Set it to the context length that you train with."""
    max_images: Positive = 8
    """Most images in a sample."""
    max_tiles: Positive | None = None
    """Most tiles in a sample, overviews included; images get fewer until they fit. Default: what max_length takes."""
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
    """The dataset's folder, relative to this file, or a URL such as s3://bucket/folder (docs/remote.md)."""
    annotations: str | tuple[str, ...] = ()
    """Annotation files or patterns below root, or URLs, where they differ from the adapter's own."""
    images: str | tuple[str, ...] = ()
    """Image folders or archives (.json, .zip, .tar, .parquet, .arrow) below root, or URLs, if other than the adapter's
    own."""
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
    tiles: Annotated[int, Ge(1), Le(64)] | None = None
    """Another value of `image.tiles` for this dataset."""
    tiles_multi: Annotated[int, Ge(1), Le(64)] | None = None
    """Another value of `image.tiles_multi` for this dataset."""
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
    """Embeddings of an image, or a tile, in the model: 256 with QWen-VL's resampler, 576 with ViT-L/14 at 336."""
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
    """process: workers on this machine. ray: a Ray cluster (docs/cluster.md). The shards are identical."""

    def policy_for(self, dataset: Dataset) -> ImagePolicy:
        """How the dataset's images are checked, shown and stored."""
        names = ("frames", "tiles", "tiles_multi")
        own = {name: getattr(dataset, name) for name in names if getattr(dataset, name) is not None}
        return dataclasses.replace(self.image, **own)

    @property
    def is_tiled(self) -> bool:
        """Whether any image may have several tiles."""
        policies = [self.image, *map(self.policy_for, self.datasets)]
        return any(max(policy.tiles, policy.tiles_multi) > 1 for policy in policies)


def resolved(blend: Blend) -> dict[str, Any]:
    """The whole configuration as plain data, without what cannot change the result: `out`, `engine`, `fetch`."""
    tree = dataclasses.asdict(blend)
    del tree["out"], tree["engine"], tree["fetch"]
    tree["image"] = without_tiles(tree["image"], tiled=blend.is_tiled)
    tree["limits"] = without_tiles(tree["limits"], tiled=blend.is_tiled and blend.limits.max_tiles is not None)
    tree["datasets"] = [without_tiles(dataset, tiled=blend.is_tiled) for dataset in tree["datasets"]]
    return tree


def without_tiles(tree: Mapping[str, Any], *, tiled: bool) -> dict[str, Any]:
    """A configuration without the settings of tiles where none are made: it is that of a release that had none."""
    return {name: value for name, value in tree.items() if tiled or name not in _OF_TILES}
