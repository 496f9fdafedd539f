"""What differs between the manifests of two builds: settings, versions, templates, tokenizer, counts and inputs.

Rule: pure functions of two manifests; only the tokens that were added to the tokenizers are read from their files.
Values are compared and shown as JSON; None means that a build does not have the value.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from dst.common.dotted_paths import leaves
from shards import Manifest, ShardError
from shards.format.manifest import DatasetInfo

_MAX_TEMPLATE_LINES = 5_000  # a build of somebody else may hold anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A value by its dotted path, as JSON text in each build; None where a build does not have it."""

    name: str
    old: str | None
    new: str | None

    def to_json(self) -> dict[str, Any]:
        values = {"old": self.old, "new": self.new}
        return {"name": self.name, **{side: json.loads(value) for side, value in values.items() if value is not None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A number of a dataset. None where a build does not have the dataset."""

    dataset: str
    name: str
    old: float | None
    new: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateDifference:
    """The lines of a unified diff, and the datasets whose template changed so."""

    datasets: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedTokens:
    """Added tokens that only one of the tokenizers has."""

    only_old: tuple[str, ...]
    only_new: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestDifferences:
    """settings: of the resolved blends. versions: compiler, release, libraries. inputs: digests of annotation files.

    datasets: (name in the old build, name in the new one); equal but for a renamed dataset, None where it is missing.
    """

    datasets: tuple[tuple[str | None, str | None], ...]
    settings: tuple[Difference, ...]
    versions: tuple[Difference, ...]
    templates: tuple[TemplateDifference, ...]
    tokenizer: tuple[Difference, ...]
    added_tokens: AddedTokens
    counts: tuple[Count, ...]
    inputs: tuple[Difference, ...]

    def __bool__(self) -> bool:
        """Whether anything differs."""
        renamed = any(old != new for old, new in self.datasets)
        parts = (self.settings, self.versions, self.templates, self.tokenizer, self.counts, self.inputs)
        return renamed or any(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": [difference.to_json() for difference in self.settings],
            "versions": [difference.to_json() for difference in self.versions],
            "templates": [asdict(template) for template in self.templates],
            "tokenizer": [difference.to_json() for difference in self.tokenizer],
            "added_tokens": asdict(self.added_tokens),
            "counts": [asdict(count) for count in self.counts],
            "inputs": [difference.to_json() for difference in self.inputs],
        }


def compare_manifests(old: Manifest, new: Manifest, tokenizers: tuple[Path, Path] | None = None) -> ManifestDifferences:
    """tokenizers: the builds' tokenizer folders, whose added tokens are compared.

    Raises ShardError if a tokenizer.json is not JSON.
    """
    datasets = tuple(_paired_datasets(old, new))
    tokens = [_added_tokens(folder) for folder in tokenizers] if tokenizers else [[], []]
    return ManifestDifferences(
        datasets=datasets,
        settings=_differences(_settings(old.config.blend), _settings(new.config.blend)),
        versions=_differences(_versions(old), _versions(new)),
        templates=tuple(_templates(old, new, datasets)),
        tokenizer=_differences(leaves(asdict(old.tokenizer)), leaves(asdict(new.tokenizer))),
        added_tokens=AddedTokens(
            only_old=tuple(token for token in tokens[0] if token not in tokens[1]),
            only_new=tuple(token for token in tokens[1] if token not in tokens[0]),
        ),
        counts=tuple(_counts(old, new, datasets)),
        inputs=_differences(_inputs(old), _inputs(new)),
    )


def same_rows(old: Manifest, new: Manifest, name: str) -> bool:
    """Whether equal keys of a dataset are the same conversation in both builds.

    A key is `<dataset>-<row>`: the row of the sample's first conversation among those that the adapter made of the
    annotation files. It does not depend on text, template or tokenizer. It shifts when a record is inserted or left
    out before it. So the rows are the same if the files, the adapter and all settings that it reads are.
    """
    left, right = old.datasets[name], new.datasets[name]
    return (
        old.compiler == new.compiler
        and (left.inputs, left.adapter, left.extension) == (right.inputs, right.adapter, right.extension)
        and _settings(old.config.blend, dataset=name) == _settings(new.config.blend, dataset=name)
    )


_NOT_OF_ROWS = ("prompt", "root", "template", "variables", "split", "samples", "epochs", "weight", "dedupe")
"""Settings of a dataset that do not change which conversation a row is"""


def _settings(blend: Mapping[str, Any], dataset: str | None = None) -> dict[str, str]:
    """Dotted path -> JSON text; a dataset is matched by its name. dataset: only what decides about its rows."""
    entries = blend.get("datasets")
    entries = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, Sequence) else []
    if dataset is not None:
        own = [entry for entry in entries if entry.get("name") == dataset]
        rows = [{key: value for key, value in entry.items() if key not in _NOT_OF_ROWS} for entry in own]
        whole = {key: blend.get(key) for key in ("seed", "limits", "image")}
        whole = {**whole, "limits": _of(whole["limits"], "max_images"), "image": _of(whole["image"], "frames")}
        return leaves({"rows": rows, **whole})
    named = {str(entry.get("name")): {key: value for key, value in entry.items() if key != "name"} for entry in entries}
    rest = {key: value for key, value in blend.items() if key != "datasets"}
    return leaves({**rest, "order of datasets": [*named], "datasets": named})


def _of(section: Any, key: str) -> Any:
    return section.get(key) if isinstance(section, Mapping) else None


def _versions(manifest: Manifest) -> dict[str, str]:
    return leaves({"dsvl": manifest.dsvl, "compiler": manifest.compiler, "libraries": dict(manifest.libraries)})


def _inputs(manifest: Manifest) -> dict[str, str]:
    return {
        f"{name}: {file.file}": json.dumps({"size": file.size, "sha256": file.sha256})
        for name, dataset in manifest.datasets.items()
        for file in dataset.inputs
    }


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> tuple[Difference, ...]:
    names = dict.fromkeys([*old, *new])
    return tuple(
        Difference(name=name, old=old.get(name), new=new.get(name)) for name in names if old.get(name) != new.get(name)
    )


def _paired_datasets(old: Manifest, new: Manifest) -> Iterator[tuple[str | None, str | None]]:
    """By name; one that is in a single build is taken for the other's with the same adapter and annotation files."""
    left = {name: _origin(old.datasets[name]) for name in old.datasets if name not in new.datasets}
    right = {name: _origin(new.datasets[name]) for name in new.datasets if name not in old.datasets}
    renamed = {
        name: other
        for name, origin in left.items()
        for other in right
        if origin == right[other] and [*left.values()].count(origin) == [*right.values()].count(origin) == 1
    }
    for name in old.datasets:
        yield name, renamed.get(name, None if name in left else name)
    for name in right:
        if name not in renamed.values():
            yield None, name


def _origin(dataset: DatasetInfo) -> tuple[str, tuple[tuple[str, str], ...]]:
    return dataset.adapter, tuple((file.file, file.sha256) for file in dataset.inputs)


def _counts(old: Manifest, new: Manifest, datasets: Sequence[tuple[str | None, str | None]]) -> Iterator[Count]:
    for first, second in datasets:
        left = _numbers(old.datasets[first]) if first else None
        right = _numbers(new.datasets[second]) if second else None
        for name in dict.fromkeys([*(left or ()), *(right or ())]):
            before, after = (side.get(name, 0) if side is not None else None for side in (left, right))
            if before != after:
                yield Count(dataset=str(second or first), name=name, old=before, new=after)


def _numbers(dataset: DatasetInfo) -> dict[str, float]:
    plain = ("records", "members", "samples", "images", "tokens", "trained_tokens", "draws", "share")
    grouped = {"rejects": dataset.rejects, "filtered": dataset.filtered or {}, "notes": dataset.notes}
    return {
        **{name: getattr(dataset, name) for name in plain},
        **{f"samples.{split}": count for split, count in dataset.splits.items()},
        **{f"{group}.{name}": count for group, counts in grouped.items() for name, count in sorted(counts.items())},
    }


def _templates(
    old: Manifest, new: Manifest, datasets: Sequence[tuple[str | None, str | None]]
) -> Iterator[TemplateDifference]:
    """Each pair of different texts once."""
    users: dict[tuple[str, str], list[str]] = {}
    for first, second in datasets:
        if first and second:
            texts = old.datasets[first].template, new.datasets[second].template
            users.setdefault(texts, []).append(second)
    for (before, after), names in users.items():
        if before != after:
            yield TemplateDifference(datasets=tuple(names), lines=tuple(_unified(before, after)))


def _unified(old: str, new: str) -> Iterator[str]:
    left, right = old.splitlines(), new.splitlines()
    if max(len(left), len(right)) > _MAX_TEMPLATE_LINES:
        yield f"{len(left):,} and {len(right):,} lines: too long to be compared line by line"
        return
    yield from difflib.unified_diff(left, right, "old", "new", lineterm="")


def _added_tokens(folder: Path) -> list[str]:
    path = folder / "tokenizer.json"
    try:
        tree = orjson.loads(path.read_bytes())
        return [str(token["content"]) for token in tree["added_tokens"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: the added tokens cannot be read ({error!r}); rebuild to write it again") from None
