"""What `dsvl-train eval` does: open and check, measure, then print and write.

Rule: problems that a user can fix are reported before the first token is generated. Results go to stdout, progress to
stderr.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import shards
from dst.common.cli import note
from dst.common.progress import Bar
from dst.common.terminal_text import json_line, visible
from dst.errors import ConfigError
from shards import Build
from trainer.errors import TrainError
from trainer.evaluation.blind import blind_losses, blind_scores, left_out
from trainer.evaluation.blind_rows import BlindRow, as_json
from trainer.evaluation.compatibility import check_model_fits_build, prepare_for_loss
from trainer.evaluation.dialogues import read_dialogues
from trainer.evaluation.held_out import Question
from trainer.evaluation.metrics import Answered, DatasetScore
from trainer.evaluation.printed import images_text, print_blind, print_images, print_measures
from trainer.evaluation.report import AnsweredDialogue, write_report
from trainer.evaluation.runner import (
    ScoredAnswers,
    answer_held_out,
    generate_answers,
    held_out_loss,
    held_out_questions,
    hold_dialogues,
    load_images,
)
from trainer.evaluation.shown_images import WRONG, Shown, ShownImages
from trainer.inference.caches import CacheSettings
from trainer.inference.conversation import Speaker
from trainer.inference.generate import Generator, Sampling
from trainer.inference.open_model import open_model, was_trained_on
from trainer.model_io.load import Loaded
from trainer.training.loop import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """The command's options."""

    model: Path
    build: str | None
    """The build to measure on, by default the run's. With dialogues: where the run's build is, if it was moved."""
    sampling: Sampling
    batch: int
    cache: CacheSettings
    out: Path | None
    as_json: bool
    allow_extensions: tuple[str, ...] = ()
    """Encoders and projectors of other packages that the model may name"""


def evaluate_build(
    settings: EvalSettings, *, loss: bool, answers: bool, blind: bool, limit: int | None, workers: int
) -> None:
    """Measure on the held-out split of a build; default: the run's. Raises ConfigError, ShardError or TrainError."""
    problems = [*settings.sampling.problems(), *_out_problems(settings.out)]
    if settings.out is not None and not answers:
        problems.append("--out and --no-answers: got both, but the report is about answers; remove one of them")
    _raise_if_any(problems)
    chosen = None if settings.build is None else shards.open(settings.build)
    moved = settings.build if chosen is not None and was_trained_on(settings.model, chosen) else None
    speaker, own = _open(settings, moved)
    build = chosen or own
    if build is None:
        raise ConfigError(["--build: missing; expected the build to measure on, since an exported model has none"])
    problems = check_model_fits_build(speaker, build.manifest)
    _raise_if_any([*problems, *(prepare_for_loss(speaker, build.manifest) if loss else [])])
    questions = held_out_questions(speaker, build, limit=limit) if answers else []
    images = _shown_images(speaker, build) if blind else None
    generator = _generator(settings, speaker) if answers else None
    evaluation: Evaluation | None = None
    scored: ScoredAnswers | None = None
    if loss:
        with _explain_out_of_memory(settings), Bar().step("loss", len(build["eval"])) as advance:
            evaluation = held_out_loss(speaker, build, sequences=settings.batch, workers=workers, advance=advance)
    if answers:
        with _explain_out_of_memory(settings), Bar().step("answers", len(questions)) as advance:
            scored = answer_held_out(
                speaker,
                build,
                questions,
                settings.sampling,
                batch=settings.batch,
                advance=advance,
                generator=generator,
            )
    rows: list[BlindRow] = []
    if images is not None and loss:
        with _explain_out_of_memory(settings), Bar().step("wrong images", len(build["eval"])) as advance:
            rows += blind_losses(speaker, build, images, sequences=settings.batch, workers=workers, advance=advance)
    if images is not None and scored and generator:
        rows += _blind_scores(settings, speaker, build, images, questions, scored, generator)
    scores = scored.scores.datasets if scored else ()
    if settings.as_json:
        measures = _measures(speaker, build, evaluation, scores) | ({"blind": as_json(rows)} if blind else {})
        if generator:
            measures["images"] = {"read": generator.cache.misses, "known": generator.cache.hits}
        print(json_line(measures))
    else:
        print_measures(build, evaluation, scores)
        if generator:
            print_images(generator.cache)
        if images is not None:
            print_blind(rows, list(left_out(images)))
    if settings.out is not None and scored:
        facts = {**_facts(settings, speaker), "build": build.manifest.hash, "earlier answers": "as recorded"}
        if evaluation:
            facts["held-out loss"] = f"{evaluation.loss:.4f}"
        if generator:
            facts["images"] = images_text(generator.cache)
        _write(settings.out, scored.dialogues, facts, scores, rows, list(left_out(images)) if images else ())


def _shown_images(speaker: Speaker, build: Build) -> ShownImages:
    images = ShownImages(build, speaker.geometry, speaker.model.encoder.mean)
    if not any(images.is_measured(sample.index) for sample in images.samples.values()):
        raise ConfigError(["--blind: no held-out sample has images that another one could have; leave it out"])
    return images


def _blind_scores(
    settings: EvalSettings,
    speaker: Loaded,
    build: Build,
    images: ShownImages,
    questions: Sequence[Question],
    scored: ScoredAnswers,
    generator: Generator,
) -> list[BlindRow]:
    """Ask the questions about images again, with wrong ones."""
    groups = {sample.index: sample.group for sample in images.samples.values()}
    numbers = [
        number
        for number, question in enumerate(questions)
        if question.num_images and images.is_measured(question.index)
    ]
    asked = [questions[number] for number in numbers]
    if not asked:
        return []
    answers: dict[Shown, Sequence[Answered]] = {"right": [scored.answers[number] for number in numbers]}
    for shown in WRONG:
        with _explain_out_of_memory(settings), Bar().step(f"answers, {shown}", len(asked)) as advance:
            answers[shown] = generate_answers(
                speaker,
                build,
                asked,
                settings.sampling,
                batch=settings.batch,
                advance=advance,
                show=partial(images.pixels, shown),
                generator=generator,
            )
    return blind_scores(answers, [groups[question.index] for question in asked])


def evaluate_dialogues(settings: EvalSettings, path: Path, *, root: Path, prefix: str, leave_out: bool) -> None:
    """Hold the dialogues of a file. Raises ConfigError, ShardError or TrainError."""
    assert settings.out is not None
    _raise_if_any([*settings.sampling.problems(), *_out_problems(settings.out)])
    dialogues = read_dialogues(path, root=root, prefix=prefix, incomplete="leave_out" if leave_out else "error")
    if not dialogues.complete:
        raise TrainError(
            f"{path}: none of its {len(dialogues.left_out)} dialogues has all of its images in {root}; correct the "
            "folder or the prefix"
        )
    speaker, _ = _open(settings, settings.build)
    images = load_images(speaker, dialogues.complete)
    generator = _generator(settings, speaker)
    num_rounds = sum(len(dialogue.rounds) for dialogue in dialogues.complete)
    with _explain_out_of_memory(settings), Bar().step("rounds", num_rounds) as advance:
        held = hold_dialogues(
            speaker,
            dialogues.complete,
            images,
            settings.sampling,
            batch=settings.batch,
            advance=advance,
            generator=generator,
        )
    notes = [
        f"dialogue {dialogue.id}: left out, it lacks {', '.join(dialogue.missing)}" for dialogue in dialogues.left_out
    ]
    notes += [
        f"dialogue {dialogue.id}: ended before round {dialogue.round}, which would take {dialogue.positions} positions"
        for dialogue in held.cut
    ]
    facts = {**_facts(settings, speaker), "dialogues": path.name, "images": images_text(generator.cache)}
    _write(settings.out, held.dialogues, facts | ({"not held": "; ".join(notes)} if notes else {}), ())
    if settings.as_json:
        result = {
            "dialogues": len(held.dialogues),
            "answers": sum(len(dialogue.rounds) for dialogue in held.dialogues),
            "cut": [asdict(dialogue) for dialogue in held.cut],
            "left_out": [asdict(dialogue) for dialogue in dialogues.left_out],
            "images": {"read": generator.cache.misses, "known": generator.cache.hits},
            "out": str(settings.out),
        }
        print(json_line(result))
    else:
        for line in notes:
            print(visible(line))
        print_images(generator.cache)
        print(visible(f"{len(held.dialogues)} dialogues held; see {settings.out / 'results.html'}"))


def _open(settings: EvalSettings, build: str | None) -> tuple[Loaded, Build | None]:
    """The model and the build it was trained on, as open_model gives them; its notes are printed."""
    speaker, own = open_model(settings.model, build=build, allow_extensions=settings.allow_extensions)
    for line in speaker.notes:
        note(line)
    return speaker, own


def _generator(settings: EvalSettings, speaker: Loaded) -> Generator:
    """Raises TrainError if the folder of its cache cannot be used."""
    generator = Generator(speaker.model, speaker.chat_tokenizer, settings.cache)
    for line in generator.notes:
        note(line)
    return generator


@contextmanager
def _explain_out_of_memory(settings: EvalSettings) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        change = f"set --batch lower than {settings.batch}" if settings.batch > 1 else "use a GPU with more memory"
        raise TrainError(f"the GPU's memory ran out ({str(error).splitlines()[0]}); {change}") from None


def _raise_if_any(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(list(problems))


def _out_problems(out: Path | None) -> list[str]:
    """Why no report can be written in the folder, as far as is known in advance."""
    if out is None:
        return []
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    return [f"--out {out}: {existing} is not a writable folder; choose another"]


def _facts(settings: EvalSettings, speaker: Loaded) -> dict[str, str]:
    sampling = settings.sampling
    method = f"temperature {sampling.temperature}, top-p {sampling.top_p}, seed {sampling.seed}"
    return {
        "model": str(speaker.folder),
        "step": str(speaker.step),
        "trained on": speaker.facts.hash,
        "answers": f"up to {sampling.max_new_tokens} tokens, {method if sampling.temperature else 'greedy'}",
    }


def _write(
    out: Path,
    dialogues: Sequence[AnsweredDialogue],
    facts: Mapping[str, str],
    scores: Sequence[DatasetScore],
    blind: Sequence[BlindRow] = (),
    blind_notes: Sequence[str] = (),
) -> None:
    title = f"{facts['model']}, step {facts['step']}"
    write_report(out, dialogues, title=title, facts=facts, scores=scores, blind=blind, blind_notes=blind_notes)


def _measures(
    speaker: Loaded, build: Build, evaluation: Evaluation | None, scores: Sequence[DatasetScore]
) -> dict[str, Any]:
    measures: dict[str, Any] = {
        "model": str(speaker.folder),
        "step": speaker.step,
        "build": build.manifest.hash,
        "scores": [asdict(row) for row in scores],
    }
    if evaluation is not None:
        measures["loss"] = {"all": evaluation.loss, "datasets": dict(evaluation.datasets)}
    return measures
