"""manifest.json: the pinned result of a build.

Rules: it names every file of the build with its digest, and its own `hash` covers all of it, so one line compares two
builds. It holds no times, so the same inputs and configuration give the same manifest. The dataclasses here are its
only schema; shards.format.manifest_file writes and reads the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from shards.format.shard_info import ShardInfo, ShardList
from shards.images.geometry import Geometry
from shards.typed_json import OPTIONAL, WHOLE, Count, Keys, PositiveCount

SPLITS = ("train", "eval")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """The most that a sample of the build has."""

    max_length: PositiveCount
    """Text tokens + tiles x image_tokens"""
    max_images: Count
    max_tiles: Annotated[PositiveCount | None, OPTIONAL] = None
    """None: as many as max_length takes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDataset:
    """A dataset of the blend."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """The resolved blend: what readers need of it, and all of it as the manifest keeps it."""

    datasets: tuple[NamedDataset, ...]
    """In the blend's order"""
    template: str
    """A name or a path, as the blend gives it"""
    variables: Mapping[str, Any]
    image: Geometry
    image_tokens: PositiveCount
    limits: BuildLimits
    blend: Annotated[Mapping[str, Any], WHOLE]

    @property
    def stores_canvases(self) -> bool:
        """Whether stored images are as the encoder sees them: the canvas of their tiles."""
        image = self.blend.get("image")
        return isinstance(image, Mapping) and image.get("store") == "resized"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerInfo:
    """The build's tokenizer. `fingerprint`: sha256 of its definition and its bos and eos tokens."""

    fingerprint: str
    vocabulary_size: PositiveCount
    image_id: Count
    """The id of the image placeholder"""
    bos_token: str
    """Empty if it has none"""
    eos_token: str

    @property
    def num_embeddings(self) -> int:
        """Rows that an embedding table needs for all ids."""
        return max(self.vocabulary_size, self.image_id + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """An annotation file that a dataset was read from; `size` in bytes."""

    file: str
    size: Count
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionFacts:
    """The code of an adapter that is not dsvl's. Readers never import it."""

    name: str
    """As the blend spells it"""
    distribution: str | None
    version: str | None
    """Of the distribution; None if the code belongs to none"""
    sha256: str
    """Digest of its source files"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What is known of a dataset wherever a model goes that was trained on it."""

    adapter: str
    extension: Annotated[ExtensionFacts | None, OPTIONAL] = None
    """None if the adapter is dsvl's"""
    template: str
    """The text of its chat template"""
    records: Count
    members: Count
    """Records that became part of a sample"""
    samples: Count
    splits: Annotated[Mapping[str, Count], Keys(SPLITS)]
    """Samples of each split"""
    images: Count
    tokens: Count
    """Ids stored, an image counting as one"""
    trained_tokens: Count
    share: float
    """Of the draws of an epoch of the blend, 0 to 1"""
    draws: Count
    """Samples of it in an epoch of the blend"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo(DatasetFacts):
    """A dataset of the build. records = members + the sum of `rejects`."""

    rejects: Mapping[str, Count]
    """Reason -> records"""
    filtered: Annotated[Mapping[str, Count] | None, OPTIONAL] = None
    """Rule of the dataset's filter -> records, which are the rejects with the reason `filtered`; None without any"""
    notes: Mapping[str, Count]
    """What was changed on the way -> how often"""
    absent: tuple[str, ...]
    """The adapter's annotation patterns that matched no file"""
    inputs: tuple[InputFile, ...]
    shards: Annotated[Mapping[str, ShardList], Keys(SPLITS)]
    """Split -> shards by number"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationQuestions:
    """A file of questions that training records were compared with."""

    file: str
    """As the blend names it"""
    ngram: PositiveCount
    """A record repeats a question if they share this many words in a row"""
    count: Count
    too_short: Count
    """Questions with fewer words, which match nothing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFacts:
    """The part of a manifest that goes with a model trained on the build: no shards, no paths of the machine."""

    hash: str
    template: str
    image: Geometry
    image_tokens: PositiveCount
    limits: BuildLimits
    tokenizer: TokenizerInfo
    datasets: Mapping[str, DatasetFacts]
    has_branches: Annotated[Literal[True] | None, OPTIONAL] = None
    """Whether some samples have branches; None if not"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest. FORMAT.md says what each key means."""

    dsvl: str
    compiler: Count
    libraries: Mapping[str, str]
    config: BuildConfig
    template: str
    """The text of the blend's chat template"""
    tokenizer: TokenizerInfo
    datasets: Mapping[str, DatasetInfo]
    """In the blend's order"""
    questions: Annotated[tuple[EvaluationQuestions, ...] | None, OPTIONAL] = None
    """Of the evaluation sets of `decontaminate`; None without any"""
    files: Mapping[str, str]
    """Path -> sha256 of the tokenizer's files and rejects.jsonl"""
    hash: str = ""
    """sha256 of the file without the line that holds it; empty until `write_manifest` computes it"""

    def shards(self) -> Iterator[tuple[str, str, ShardInfo]]:
        """(dataset, split, shard): datasets in the blend's order, train before eval, shards by number."""
        for name, dataset in self.datasets.items():
            for split in SPLITS:
                for info in dataset.shards[split]:
                    yield name, split, info

    @property
    def has_branches(self) -> bool:
        """Whether some samples have a common beginning and branches."""
        return any(shards.has_branches for dataset in self.datasets.values() for shards in dataset.shards.values())

    @property
    def has_tiles(self) -> bool:
        """Whether the indexes say how many tiles each image has."""
        return any(shards.has_tiles for dataset in self.datasets.values() for shards in dataset.shards.values())

    @property
    def most_per_sample(self) -> int | None:
        """Most images of a sample, in a build with tiles most tiles; None if only max_length limits them."""
        limits = self.config.limits
        return limits.max_tiles if self.has_tiles else limits.max_images

    def has_samples(self, split: str) -> bool:
        return any(sum(dataset.shards[split].samples) for dataset in self.datasets.values())

    def facts(self) -> BuildFacts:
        """What goes with a model that was trained on the build."""
        names = [field.name for field in fields(DatasetFacts)]
        return BuildFacts(
            hash=self.hash,
            template=self.config.template,
            image=self.config.image,
            image_tokens=self.config.image_tokens,
            limits=self.config.limits,
            tokenizer=self.tokenizer,
            has_branches=self.has_branches or None,
            datasets={
                name: DatasetFacts(**{field: getattr(dataset, field) for field in names})
                for name, dataset in self.datasets.items()
            },
        )
