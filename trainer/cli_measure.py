"""Commands of `dsvl-train` that measure a model or show what a run measured."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from dst.common.cli import PAGE
from trainer.cli_options import PATH, TrainCommand, allow_extension, cache_options

_OF_DIALOGUES, _OF_BUILDS = ("images", "prefix", "leave_out"), ("loss", "answers", "blind", "limit", "workers")
"""Options of eval that apply to only one of its two kinds"""


@click.command("eval", cls=TrainCommand)
@click.option("--model", required=True, type=PATH, help="An exported folder, a run's `out` folder, or a checkpoint.")
@click.option("--build", help="Build to measure on: folder or URL; a run's own, if it was moved.  [default: the run's]")
@click.option("--dialogues", type=PATH, help="Hold the dialogues of this JSON file instead.")
@click.option("--images", type=PATH, help="Folder of the dialogues' images.  [default: the file's]")
@click.option("--prefix", default="", help="Leading folders to remove from the file's paths.")
@click.option("--leave-out", is_flag=True, help="Skip dialogues with missing images.")
@click.option("--out", type=PATH, help="Folder for results.csv, results.jsonl and results.html.")
@click.option("--loss/--no-loss", default=True, help="Measure the held-out loss.  [default: loss]")
@click.option("--answers/--no-answers", default=True, help="Answer and score.  [default: answers]")
@click.option("--blind", is_flag=True, help="Measure again with other samples' images, and with blank ones.")
@click.option("--limit", type=click.IntRange(min=1), help="Records per dataset to ask about.  [default: all]")
@click.option(
    "--batch", default=4, show_default=True, type=click.IntRange(min=1), help="Sequences, or prompts, a batch."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=0), help="Loader processes.")
@click.option("--max-new-tokens", default=128, show_default=True, help="Of one answer.")
@click.option("--temperature", default=0.0, show_default=True, help="Above 0 answers are sampled; 0 is greedy.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample from the likeliest tokens with this probability.")
@click.option("--seed", default=0, show_default=True, help="Seed of sampling.")
@cache_options
@click.option("--json", "as_json", is_flag=True, help="Print results as one line of JSON.")
@allow_extension
def evaluate(
    model: Path,
    build: str | None,
    dialogues: Path | None,
    images: Path | None,
    prefix: str,
    leave_out: bool,
    out: Path | None,
    loss: bool,
    answers: bool,
    blind: bool,
    limit: int | None,
    batch: int,
    workers: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    cache_gb: float,
    cache_dir: Path | None,
    as_json: bool,
    allow_extensions: tuple[str, ...],
) -> None:
    """Measure a model on held-out samples (loss, VQA accuracy, exact match, CIDEr, BLEU), or hold dialogues with it."""
    source_of = click.get_current_context().get_parameter_source
    for name in _OF_DIALOGUES if dialogues is None else _OF_BUILDS:
        if source_of(name) is ParameterSource.COMMANDLINE:
            how = "without" if dialogues is None else "with"
            raise click.UsageError(f"--{name.replace('_', '-')}: has no effect {how} --dialogues; remove it")
    if dialogues is not None and out is None:
        raise click.UsageError("--out: missing; expected a folder for the report of the dialogues")
    if dialogues is None and not (loss or answers):
        raise click.UsageError("--no-loss and --no-answers: nothing is left to measure; expected at most one of them")
    from trainer.evaluation.command import EvalSettings, evaluate_build, evaluate_dialogues
    from trainer.inference.caches import CacheSettings
    from trainer.inference.generate import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    settings = EvalSettings(
        model=model,
        build=build,
        sampling=sampling,
        batch=batch,
        cache=CacheSettings(gb=cache_gb, folder=cache_dir),
        out=out,
        as_json=as_json,
        allow_extensions=allow_extensions,
    )
    if dialogues is None:
        evaluate_build(settings, loss=loss, answers=answers, blind=blind, limit=limit, workers=workers)
    else:
        root = images or dialogues.parent
        evaluate_dialogues(settings, dialogues, root=root, prefix=prefix, leave_out=leave_out)


@click.command(cls=TrainCommand)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=PATH)
@click.option("--html", "page", type=PAGE, help="Also write a page with charts.  Needs the extra `view`.")
def report(runs: tuple[Path, ...], page: Path | None) -> None:
    """Show what runs logged, and what settings differ between them; also while they train.

    RUN: the `out` folder of a run. The charts show loss, held-out loss of each dataset, learning rates, throughput,
    data wait, padding and memory, of all runs over each other.
    """
    from dst.common.terminal_text import visible
    from trainer.reporting.page import write_report_page
    from trainer.reporting.runs import read_runs
    from trainer.reporting.summary import print_summary

    read = read_runs(runs)
    if page is not None:
        write_report_page(page, read)
    print_summary(read)
    if page is not None:
        click.echo(f"wrote {visible(page)}")
