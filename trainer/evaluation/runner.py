"""Evaluating a model: its loss on a build's held-out samples, and its answers to their questions and to your dialogues.

Rules
- A held-out question is asked after the recorded answers before it. In a dialogue the model sees its own answers.
- What can be checked before the first token is generated is checked then: a build that the model was not made for
  (trainer.evaluation.compatibility), a file that is not an image, a package that is missing.
- Questions about the same images follow each other, and prompts of similar length share a batch. That changes answers
  only by rounding. What is sampled is keyed by record and answer, so it depends neither on the batch nor on the records
  that share a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dst import ControlTextError, TemplateError
from dst.common.progress import Advance
from dst.errors import ConfigError
from shards import Build
from shards.loader import Batch, Loader
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError
from trainer.evaluation.dialogues import Dialogue
from trainer.evaluation.held_out import SPLIT, Question, Show, prompt_for, question_text, questions_of
from trainer.evaluation.length_batches import length_batches
from trainer.evaluation.metrics import Answered, Scores, missing_packages, score
from trainer.evaluation.report import PAGE_DIALOGUES, AnsweredDialogue, AnsweredRound, ReportImage
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import (
    Exchange,
    Speaker,
    answer_text,
    messages_of,
    prompt_of,
)
from trainer.inference.generate import Generator, Sampling
from trainer.inference.images import LoadedImage, load_image
from trainer.training.loop import Evaluation, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswers:
    """A model's answers to held-out questions, in their order. dialogues: one per record, for the report."""

    scores: Scores
    answers: tuple[Answered, ...]
    dialogues: tuple[AnsweredDialogue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutDialogue:
    """A dialogue that became too long: the round (from 1) that could not be asked, and the positions it would take."""

    id: str
    round: int
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldDialogues:
    """Dialogues as they were held, and those that ended early."""

    dialogues: tuple[AnsweredDialogue, ...]
    cut: tuple[CutDialogue, ...]


def held_out_loss(speaker: Speaker, build: Build, *, sequences: int, workers: int, advance: Advance) -> Evaluation:
    """The mean loss over all trained tokens of the held-out split, after `prepare_for_loss`.

    sequences: per batch; they hold several samples if the decoder keeps them apart. advance: called with the number of
    samples done. Raises ShardError or TrainError.
    """
    loader = Loader(
        build,
        split=SPLIT,
        batch_size=sequences,
        max_length=build.manifest.config.limits.max_length,
        packed=speaker.model.separates_samples,
        workers=workers,
    )
    ranks = Ranks(rank=0, world_size=1, device=_device(speaker))
    return evaluate(speaker.model, _counted(loader, advance), build.datasets, ranks=ranks)


def held_out_questions(speaker: Speaker, build: Build, *, limit: int | None) -> list[Question]:
    """The questions for `answer_held_out`. Raises ConfigError if a package for the scores is missing, or ShardError."""
    questions = questions_of(build, speaker.chat_tokenizer.tokenizer, limit=limit)
    problems = missing_packages(question.kind for question in questions)
    if problems:
        raise ConfigError(problems)
    return questions


def answer_held_out(
    speaker: Speaker,
    build: Build,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch: int,
    advance: Advance,
    generator: Generator | None = None,
) -> ScoredAnswers:
    """Generate and score answers. Raises ShardError or TrainError. advance: called with the number of answers done.

    generator: of the speaker's model, which may know images already; None: a new one.
    """
    answers = generate_answers(speaker, build, questions, sampling, batch=batch, advance=advance, generator=generator)
    scores = score(answers)
    texts = [answer.prediction for answer in answers]
    return ScoredAnswers(
        scores=scores, answers=tuple(answers), dialogues=tuple(_dialogues(speaker, build, questions, texts, scores))
    )


def generate_answers(
    speaker: Speaker,
    build: Build,
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    batch: int,
    advance: Advance,
    show: Show | None = None,
    generator: Generator | None = None,
) -> list[Answered]:
    """The answers to questions, in their order. show: other images in the place of their own. Raises as above."""
    generator = generator or Generator(speaker.model, speaker.chat_tokenizer)
    tokenizer = speaker.chat_tokenizer.tokenizer
    answers = [""] * len(questions)
    lengths = {number: question.positions for number, question in enumerate(questions)}
    for numbers in length_batches(lengths, batch, {number: questions[number].images for number in lengths}):
        asked = [questions[number] for number in numbers]
        prompts = [prompt_for(build, question, speaker.geometry, tokenizer.image_id, show) for question in asked]
        keys = [(question.dataset, question.record, question.number) for question in asked]
        for number, tokens in zip(numbers, generator.batch(prompts, sampling, keys=keys), strict=True):
            answers[number] = answer_text(tokenizer, tokens, questions[number].end_id)
        advance(len(numbers))
    return [
        Answered(
            dataset=question.dataset,
            key=question.name,
            kind=question.kind,
            prediction=answer,
            references=question.references,
        )
        for question, answer in zip(questions, answers, strict=True)
    ]


def load_images(speaker: Speaker, dialogues: Sequence[Dialogue]) -> dict[Path, LoadedImage]:
    """The images of dialogues. Raises TrainError with all invalid images and all dialogues that cannot be held."""
    images: dict[Path, LoadedImage] = {}
    problems: dict[str, None] = {}
    for dialogue in dialogues:
        for image in dialogue.images:
            if image.path not in images:
                try:
                    images[image.path] = load_image(image.path, speaker.geometry)
                except TrainError as error:
                    problems[f"dialogue {dialogue.id!r}: {error}"] = None
        blank = LoadedImage(path=Path(), data=b"", geometry=speaker.geometry, size=(1, 1))
        exchanges = [
            Exchange(question=round_.question, images=(blank,) * len(round_.images), answer="!")
            for round_ in dialogue.rounds
        ]
        try:
            speaker.chat_tokenizer.encode(messages_of(exchanges))
        except (ControlTextError, TemplateError) as error:
            problems[f"dialogue {dialogue.id!r}: {error}"] = None
    if problems:
        raise TrainError("\n".join(problems))
    return images


def hold_dialogues(
    speaker: Speaker,
    dialogues: Sequence[Dialogue],
    images: Mapping[Path, LoadedImage],
    sampling: Sampling,
    *,
    batch: int,
    advance: Advance,
    generator: Generator | None = None,
) -> HeldDialogues:
    """Ask the first questions of all dialogues, then the second, and so on. advance: called with the rounds done.

    generator: as for `answer_held_out`.
    """
    generator = generator or Generator(speaker.model, speaker.chat_tokenizer)
    tokenizer = speaker.chat_tokenizer.tokenizer
    held: list[list[Exchange]] = [[] for _ in dialogues]
    cut: dict[int, CutDialogue] = {}
    for number in range(max((len(dialogue.rounds) for dialogue in dialogues), default=0)):
        prompts: dict[int, Prompt] = {}
        for index, dialogue in enumerate(dialogues):
            if number < len(dialogue.rounds) and index not in cut:
                round_ = dialogue.rounds[number]
                new_images = tuple(images[image.path] for image in round_.images)
                held[index].append(Exchange(question=round_.question, images=new_images))
                prompt = prompt_of(held[index], speaker, end_id=generator.end_id, limit=generator.limit)
                if generator.limit is not None and len(prompt.ids) >= generator.limit:
                    cut[index] = CutDialogue(id=dialogue.id, round=number + 1, positions=len(prompt.ids))
                    del held[index][-1]
                    advance(len(dialogue.rounds) - number)
                else:
                    prompts[index] = prompt
        for indices in length_batches({index: len(prompt.ids) for index, prompt in prompts.items()}, batch):
            keys = [(dialogues[index].id, number) for index in indices]
            answers = generator.batch([prompts[index] for index in indices], sampling, keys=keys)
            for index, tokens in zip(indices, answers, strict=True):
                answer = answer_text(tokenizer, tokens, generator.end_id)
                held[index][-1] = replace(held[index][-1], answer=answer)
            advance(len(indices))
    answered = tuple(map(_answered, dialogues, held))
    return HeldDialogues(dialogues=answered, cut=tuple(cut[index] for index in sorted(cut)))


def _counted(loader: Loader, advance: Advance) -> Iterator[Batch]:
    for batch in loader:
        yield batch
        advance(sum(map(len, batch.samples)))


def _device(speaker: Speaker) -> torch.device:
    return next(speaker.model.parameters()).device


def _dialogues(
    speaker: Speaker, build: Build, questions: Sequence[Question], answers: Sequence[str], scores: Scores
) -> Iterator[AnsweredDialogue]:
    """A dialogue per record, its questions in order; with images' bytes only if the page can show it."""
    rounds: list[AnsweredRound] = []
    num_dialogues = 0
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        is_on_page = num_dialogues < PAGE_DIALOGUES
        text, images = question_text(build, question, speaker.chat_tokenizer.tokenizer, with_images=is_on_page)
        rounds.append(
            AnsweredRound(
                question=text,
                answer=answer,
                images=images,
                references=question.references,
                scores=scores.answers[number],
            )
        )
        following = questions[number + 1] if number + 1 < len(questions) else None
        if following is None or (following.index, following.branch) != (question.index, question.branch):
            yield AnsweredDialogue(
                id=question.key,
                rounds=tuple(rounds),
                dataset=question.dataset,
                record=question.record,
                branch=None if question.branch is None else question.branch + 1,
            )
            rounds = []
            num_dialogues += 1


def _answered(dialogue: Dialogue, held: Sequence[Exchange]) -> AnsweredDialogue:
    return AnsweredDialogue(
        id=dialogue.id,
        rounds=tuple(
            AnsweredRound(
                question=exchange.question,
                answer=exchange.answer or "",
                images=tuple(ReportImage(name=image.name, content=image.path) for image in round_.images),
            )
            for round_, exchange in zip(dialogue.rounds, held, strict=False)
        ),
    )
