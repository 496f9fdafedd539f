"""The content of a build in numbers, read from its indexes with polars: no shard is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from preprocess.compiler.report import counts_text, questions_lines
from shards import Build
from shards.format.manifest import EvaluationQuestions
from shards.format.records import records_each

_QUANTILES = (0.5, 0.9, 0.99)


def build_stats(build: Build) -> list[dict[str, Any]]:
    """One row per dataset and split. Lengths count text tokens + tiles x image_tokens.

    records: branches of samples, each other sample counting as one. separate_images, separate_tokens: what samples of
    one record each would have; without the text that records have in common, of which an index says nothing.
    Raises ShardError if an index cannot be read.
    """
    image_tokens = build.manifest.config.image_tokens
    frames = [
        pl.DataFrame(shard.index.table.select(["text_tokens", "trained_tokens", "images"])).with_columns(
            dataset=pl.lit(name),
            split=pl.lit(split),
            records=records_each(shard.info),
            tiles=shard.tiles_of(np.arange(len(shard))),
        )
        for name, split, shard in build.shards()
    ]
    if not frames:
        return []
    length = pl.col("text_tokens").cast(pl.Int64) + pl.col("tiles") * image_tokens
    repeated, repeated_tiles = (pl.col(name).cast(pl.Int64) * (pl.col("records") - 1) for name in ("images", "tiles"))
    table = (
        pl.concat(frames)
        .with_columns(length=length, repeated=repeated, repeated_tiles=repeated_tiles)
        .group_by("dataset", "split", maintain_order=True)
        .agg(
            samples=pl.len(),
            records=pl.col("records").sum(),
            images=pl.col("images").sum().cast(pl.Int64),
            tiles=pl.col("tiles").sum(),
            separate_images=(pl.col("images") + pl.col("repeated")).sum(),
            separate_tokens=(pl.col("length") + pl.col("repeated_tiles") * image_tokens).sum(),
            length_sum=pl.col("length").sum(),
            images_max=pl.col("images").max(),
            text_tokens=pl.col("text_tokens").sum().cast(pl.Int64),
            trained_tokens=pl.col("trained_tokens").sum().cast(pl.Int64),
            length_mean=pl.col("length").mean(),
            **{f"length_p{int(q * 100)}": pl.col("length").quantile(q, "higher").cast(pl.Int64) for q in _QUANTILES},
            length_max=pl.col("length").max(),
        )
        .with_columns(trained_share=pl.col("trained_tokens") / pl.col("text_tokens"))
    )
    datasets = build.manifest.datasets
    return [
        {**row, "share": datasets[row["dataset"]].share if row["split"] == "train" else 0.0} for row in table.to_dicts()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverDrawn:
    """Train samples with a number of records that is so rare that no epoch of the blend draws one of them."""

    dataset: str
    records_each: int
    samples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def never_drawn(build: Build) -> list[NeverDrawn]:
    """Of the datasets that an epoch draws from."""
    return [
        NeverDrawn(dataset=name, records_each=count, samples=info.shards["train"].by_records[count])
        for name, info in build.manifest.datasets.items()
        if info.draws
        for count, draws in build.epoch_draws(name).items()
        if not draws
    ]


def filter_counts(build: Build) -> dict[str, dict[str, int]]:
    """Dataset -> rule of its filter -> records that it dropped; only datasets that lost some."""
    datasets = build.manifest.datasets
    return {name: dict(dataset.filtered) for name, dataset in datasets.items() if dataset.filtered}


def print_stats(
    rows: list[dict[str, Any]],
    dropped: Mapping[str, Mapping[str, int]],
    questions: Sequence[EvaluationQuestions] = (),
    missed: Sequence[NeverDrawn] = (),
) -> None:
    """The rows as a table; below it, what sharing saves, samples that no epoch draws, records that filters dropped,
    and questions that `decontaminate` cannot match.
    """
    from rich.table import Table

    from preprocess.terminal import cell, results

    table = Table()
    has_branches = any(row["records"] > row["samples"] for row in rows)
    has_tiles = any(row["tiles"] > row["images"] for row in rows)
    titles = (
        "dataset",
        "split",
        *(["records"] if has_branches else []),
        "samples",
        "images",
        *(["tiles"] if has_tiles else []),
        "text tokens",
        "trained",
        "length mean",
        "p50",
        "p90",
        "p99",
        "max",
        "share",
    )
    for title in titles:
        table.add_column(title, justify="left" if title in ("dataset", "split") else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            cell(row["dataset"]),
            row["split"],
            *([f"{row['records']:,}"] if has_branches else []),
            f"{row['samples']:,}",
            f"{row['images']:,}",
            *([f"{row['tiles']:,}"] if has_tiles else []),
            f"{row['text_tokens']:,}",
            f"{row['trained_share']:.0%}",
            f"{row['length_mean']:,.0f}",
            *(f"{row[key]:,}" for key in ("length_p50", "length_p90", "length_p99", "length_max")),
            f"{row['share']:.1%}",
        )
    console = results()
    console.print(table)
    for line in (*_sharing_lines(rows), *_missed_lines(missed)):
        console.print(cell(line))
    for name, counts in dropped.items():
        console.print(cell(f"{name}: filtered: {counts_text(counts)}"))
    for line in questions_lines(questions):
        console.print(cell(line))


def _sharing_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["records"] > row["samples"]:
            saved = 1 - row["length_sum"] / row["separate_tokens"]
            yield (
                f"{row['dataset']}: {row['split']}: {row['records']:,} records in {row['samples']:,} samples, with "
                f"{row['images']:,} images instead of {row['separate_images']:,}: sharing saves at least {saved:.0%} "
                f"of the tokens ({row['length_sum']:,} instead of {row['separate_tokens']:,})"
            )
    names = dict.fromkeys(row["dataset"] for row in rows if row["records"] > row["samples"])
    if names:
        yield f"share: of an epoch's draws; those of {', '.join(names)} count records, not samples"


def _missed_lines(missed: Sequence[NeverDrawn]) -> Iterator[str]:
    for one in missed:
        yield (
            f"{one.dataset}: no epoch draws the {one.samples:,} samples with {one.records_each} records: it takes too "
            "few records of the dataset; raise its samples, epochs or weight"
        )
