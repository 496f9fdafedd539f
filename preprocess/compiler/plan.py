"""Make pure tasks from the adapters' conversations, and each dataset's share of the blend from counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from preprocess.blend.config import Blend, Dataset, without_tiles
from preprocess.compiler import split_assignment as split
from preprocess.compiler.image_copies import Copies
from preprocess.compiler.image_states import States
from preprocess.compiler.ingest import content_key
from preprocess.compiler.share import image_units
from preprocess.compiler.spool import Spool
from preprocess.compiler.task import CompileTask, TaskContext
from preprocess.compiler_version import COMPILER, libraries
from preprocess.dedupe.equal_rows import narrow
from preprocess.errors import DataError
from preprocess.images.prepare import even_count
from preprocess.images.videos import reader_version

_GROUPLESS_SALT = "conversation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A dataset's part in one epoch of the blend: `samples` draws, `share` of all draws. With branches: of records."""

    samples: int
    share: float


def has_eval_side(blend: Blend, spools: Mapping[str, Spool]) -> bool:
    """Whether some conversations may go to eval and others to train, so that copies of an image must stay together."""
    if blend.split.eval > 0:
        return True
    rows = np.concatenate([*held_out(blend, spools).values()])
    return bool(rows.any() and not rows.all())


def held_out(blend: Blend, spools: Mapping[str, Spool]) -> dict[str, npt.NDArray[np.bool_]]:
    """Dataset -> bool [rows], the conversations that are on the eval side whatever the share is."""
    return {
        dataset.name: spools[dataset.name].column("official_eval").astype(bool)
        if blend.split.official == "honour" and dataset.split is None
        else np.full(len(spools[dataset.name]), dataset.split == "eval")
        for dataset in blend.datasets
    }


def assign_splits(blend: Blend, spools: Mapping[str, Spool], copies: Copies | None = None) -> dict[str, split.Side]:
    """The side of every conversation, decided over the whole blend at once.

    spools: in the blend's order. copies: images that stay together. Raises DataError if all conversations are on the
    eval side, and the blend does not say so.
    """
    official_eval = held_out(blend, spools)
    if blend.split.eval <= 0 and not any(rows.any() for rows in official_eval.values()):
        return {name: np.full(len(spool), split.TRAIN, np.uint8) for name, spool in spools.items()}
    row, group = 0, 0
    num_rows = sum(len(spool) for spool in spools.values())
    num_groups = sum(spool.length("groups") + spool.num_images for spool in spools.values())
    groups, own, starts = [], [], np.zeros(num_rows + 1, narrow(num_groups))
    official, pinned = np.zeros(num_rows, np.bool_), np.zeros(num_rows, np.bool_)
    for dataset in blend.datasets:
        name, spool = dataset.name, spools[dataset.name]
        rows = slice(row, row + len(spool))
        values, begin = copies.groups(name, spool) if copies else spool.lists("groups")
        groups.append(values.astype(np.uint64, copy=False))
        np.add(begin[1:], group, out=starts[rows.start + 1 : rows.stop + 1], casting="same_kind")
        group += len(values)
        salt = np.uint64(xxhash.xxh3_64_intdigest(f"{_GROUPLESS_SALT}/{name}".encode()))
        own.append(spool.column("hash")[begin[1:] == begin[:-1]] ^ salt)
        official[rows] = official_eval[name]
        pinned[rows] = dataset.split == "train"
        row = rows.stop
        del values, begin  # they take as much memory as all that is kept of the dataset
        spool.forget_pages()
    side = split.assign(
        groups[0] if len(groups) == 1 else np.concatenate(groups),
        starts,
        np.concatenate(own),
        official,
        pinned,
        share=blend.split.eval,
        seed=blend.seed,
    )
    borders = np.cumsum([len(spool) for spool in spools.values()])[:-1]
    sides = dict(zip(spools, np.split(side, borders), strict=True))
    _check_train_side(blend, sides)
    return sides


def official_use(blend: Blend, dataset: Dataset) -> str:
    """What the blend makes of a dataset's official val and test records, for people."""
    match dataset.split, blend.split.official:
        case "train", _:
            return "trained, as split: train says"
        case "eval", _:
            return "held out, like the whole dataset (split: eval)"
        case _, "honour":
            return "held out; to train on them, set split: train on the dataset"
        case _:
            return "not held out for that, as split.official: ignore says"


def plan_tasks(
    blend: Blend, dataset: Dataset, context: TaskContext, spool: Spool, side: split.Side, states: States
) -> Iterator[CompileTask]:
    """Train and eval conversations, cut into tasks of bounded size. states: of the spool's images.

    They keep the adapter's order; with `concat` they are shuffled, since neighbours are often about the same image, and
    with `share` those about the same images follow each other.
    """
    hashes = spool.column("hash")
    counts = spool.counts("images")
    states_of_rows = spool.hash_of_images(states)
    base = {
        "compiler": COMPILER,
        "libraries": libraries(),
        "dataset": dataset.name,
        "template": context.template,
        "tokenizer": context.tokenizer.name,
        "image": without_tiles(dataclasses.asdict(context.image), tiled=context.tiled),
        "image_tokens": context.image_tokens,
        "limits": [context.max_length, context.max_images, context.too_long],
        "prompt": context.prompt,
        "concat": context.concat,
    }
    if even_count(context.image.frames):
        base["videos"] = reader_version()
    if context.share > 1:
        base["share"] = context.share
    if context.tiled:
        base["max_tiles"] = context.max_tiles
    if context.image_rules:
        base["filter"] = [[name, bounds.min, bounds.max] for name, bounds in context.image_rules]
    for code, name in enumerate(split.NAMES):
        rows = np.flatnonzero(side == code)
        if dataset.concat > 1:
            rows = rows[np.argsort(split.mix(hashes[rows], blend.seed), kind="stable")]
        adds_images: npt.NDArray[np.bool_] | None = None
        unit_starts: npt.NDArray[np.int64] | None = None
        if dataset.share > 1:
            units = image_units(spool.group_hashes()[rows], spool.image_hashes()[rows], dataset.share)
            rows, adds_images, unit_starts = rows[units.order], units.adds_images, np.flatnonzero(units.starts)
        images = counts[rows]
        if adds_images is not None:
            images *= adds_images
        for number, part in enumerate(_cut(rows, images, unit_starts, blend)):
            content = xxhash.xxh3_128()
            content.update(part.astype("<i8").tobytes())
            content.update(hashes[part].astype("<u8").tobytes())
            content.update(states_of_rows[part].astype("<u8").tobytes())
            key = content_key({**base, "split": name, "number": number, "content": content.hexdigest()})
            yield CompileTask(context=context, split=name, number=number, rows=part, key=key)


def shares(blend: Blend, samples: Mapping[str, int]) -> dict[str, Share]:
    """How often an epoch of the blend draws from each dataset, given its number of train samples.

    Of a dataset with `share` both are numbers of records: a sample counts as often as it has branches.

    Weights divide `total` exactly, by largest remainder. Raises DataError if the blend draws from a dataset without
    train samples.
    """
    draws: dict[str, int] = {}
    weighted = {dataset.name: dataset.weight for dataset in blend.datasets if dataset.weight is not None}
    for dataset in blend.datasets:
        have = samples[dataset.name]
        if dataset.samples == "all":
            draws[dataset.name] = have
        elif isinstance(dataset.samples, int):
            draws[dataset.name] = dataset.samples
        elif dataset.epochs is not None:
            draws[dataset.name] = round(dataset.epochs * have)
        elif dataset.split == "eval":
            draws[dataset.name] = 0
    if weighted and blend.total is not None:
        draws.update(_largest_remainder(blend.total, weighted))
    empty = [name for name, count in draws.items() if count and not samples[name]]
    if empty:
        raise DataError(
            f"dataset {empty[0]}: the blend draws {draws[empty[0]]} samples from it, but it has no train samples; "
            "see its rejects, and what is held out (split.official, split.eval); split: train on the dataset holds out "
            "nothing"
        )
    total = sum(draws.values())
    return {
        dataset.name: Share(samples=draws[dataset.name], share=draws[dataset.name] / total if total else 0.0)
        for dataset in blend.datasets
    }


def make_context(
    blend: Blend,
    dataset: Dataset,
    *,
    build: Path,
    cache: Path,
    spool: Path,
    images: Sequence[Path],
    tokenizer: Path,
    template: tuple[str, str],
    decoded: Path | None,
    url: str | None = None,
) -> TaskContext:
    """tokenizer: its folder in the cache, named by fingerprint. template: name and text. url: where shards are sent."""
    return TaskContext(
        dataset=dataset.name,
        build=build,
        cache=cache,
        spool=spool,
        stores=tuple(images),
        tokenizer=tokenizer,
        template_name=template[0],
        template=template[1],
        image=blend.policy_for(dataset),
        image_tokens=blend.image_tokens,
        max_length=blend.limits.max_length,
        max_images=blend.limits.max_images,
        max_tiles=blend.limits.max_tiles if blend.is_tiled else None,
        tiled=blend.is_tiled,
        too_long=blend.limits.too_long,
        prompt=dataset.prompt,
        concat=dataset.concat,
        share=dataset.share,
        image_rules=dataset.filter.image_rules if dataset.filter else (),
        decoded=decoded,
        url=url,
    )


def _check_train_side(blend: Blend, sides: Mapping[str, split.Side]) -> None:
    """A build that is only for evaluation is made if every dataset says so, never by accident."""
    unasked = [dataset.name for dataset in blend.datasets if dataset.split != "eval"]
    is_eval_only = not any((side == split.TRAIN).any() for side in sides.values())
    if unasked and is_eval_only and any(len(side) for side in sides.values()):
        raise DataError(
            f"dataset {', '.join(unasked)}: all records of the build are held out, so nothing would be trained "
            "(split.official, split.eval); for a build that is only for evaluation, set split: eval on every dataset; "
            "to train on a dataset's val or test records, set split: train on it"
        )


def _cut(
    rows: npt.NDArray[np.int64], images: npt.NDArray[np.int32], starts: npt.NDArray[np.int64] | None, blend: Blend
) -> Iterator[npt.NDArray[np.int64]]:
    """Runs of units, each run with at most max_samples rows and max_images images; a single unit may have more.

    images: what each row adds to the images of a run. starts: where rows that stay together begin; None: each row is a
    unit.
    """
    before = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(images, out=before[1:])
    borders = None if starts is None else np.append(starts, len(rows))
    if borders is not None:
        before = before[borders]
    unit, last = 0, len(before) - 1
    while unit < last:
        by_images = int(np.searchsorted(before, before[unit] + blend.shard.max_images, side="right")) - 1
        first = unit if borders is None else int(borders[unit])
        by_samples = first + blend.shard.max_samples
        if borders is not None:
            by_samples = int(np.searchsorted(borders, by_samples, side="right")) - 1
        end = min(max(by_images, unit + 1), max(by_samples, unit + 1), last)
        yield rows[first : end if borders is None else borders[end]]
        unit = end


def _largest_remainder(total: int, weights: Mapping[str, Any]) -> dict[str, int]:
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    draws = {name: int(value) for name, value in exact.items()}
    left = sorted(exact, key=lambda name: (draws[name] - exact[name], name))
    for name in left[: total - sum(draws.values())]:
        draws[name] += 1
    return draws
