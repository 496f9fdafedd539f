"""The content of a build in numbers, read from its indexes with polars: no shard is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from preprocess.compiler.report import counts_text, questions_lines
from shards import Build
from shards.format.manifest import EvaluationQuestions

_QUANTILES = (0.5, 0.9, 0.99)


def build_stats(build: Build) -> list[dict[str, Any]]:
    """One row per dataset and split. Lengths count text tokens + images x image_tokens.

    Raises ShardError if an index cannot be read.
    """
    image_tokens = build.manifest.config.image_tokens
    frames = [
        pl.DataFrame(shard.index.table.select(["text_tokens", "trained_tokens", "images"])).with_columns(
            dataset=pl.lit(name), split=pl.lit(split)
        )
        for name, split, shard in build.shards()
    ]
    if not frames:
        return []
    length = pl.col("text_tokens").cast(pl.Int64) + pl.col("images").cast(pl.Int64) * image_tokens
    table = (
        pl.concat(frames)
        .with_columns(length=length)
        .group_by("dataset", "split", maintain_order=True)
        .agg(
            samples=pl.len(),
            images=pl.col("images").sum().cast(pl.Int64),
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


def filter_counts(build: Build) -> dict[str, dict[str, int]]:
    """Dataset -> rule of its filter -> records that it dropped; only datasets that lost some."""
    datasets = build.manifest.datasets
    return {name: dict(dataset.filtered) for name, dataset in datasets.items() if dataset.filtered}


def print_stats(
    rows: list[dict[str, Any]],
    dropped: Mapping[str, Mapping[str, int]],
    questions: Sequence[EvaluationQuestions] = (),
) -> None:
    """The rows as a table; below it, records that filters dropped, and questions that `decontaminate` cannot match."""
    from rich.table import Table

    from preprocess.terminal import cell, results

    table = Table()
    titles = (
        "dataset",
        "split",
        "samples",
        "images",
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
            f"{row['samples']:,}",
            f"{row['images']:,}",
            f"{row['text_tokens']:,}",
            f"{row['trained_share']:.0%}",
            f"{row['length_mean']:,.0f}",
            *(f"{row[key]:,}" for key in ("length_p50", "length_p90", "length_p99", "length_max")),
            f"{row['share']:.1%}",
        )
    console = results()
    console.print(table)
    for name, counts in dropped.items():
        console.print(cell(f"{name}: filtered: {counts_text(counts)}"))
    for line in questions_lines(questions):
        console.print(cell(line))
