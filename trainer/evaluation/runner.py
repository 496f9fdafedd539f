"""Measure a model: its loss on a build's held-out samples, its answers to their questions, and to your own dialogues.

Rules
- Held-out answers are asked for one by one, after the recorded ones before them. Dialogues are held for real: the model
  hears its own answers.
- What can be told before the first token is told then: a build that the model was not made for, a picture that is no
  picture, a package that is missing.
- Prompts of like length share a batch. That changes no answer but by rounding; draws are keyed by what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from dst import ControlTextError, TemplateError
from dst.common.progress import Advance
from dst.errors import ConfigError
from shards import Build, Manifest
from shards.images.geometry import Geometry
from shards.loader import Batch, Loader
from trainer.distributed.ranks import Ranks
from trainer.errors import TrainError
from trainer.evaluation.dialogues import Dialogue
from trainer.evaluation.held_out import SPLIT, Question, prompt_for, questions_of, shown
from trainer.evaluation.metrics import Answered, Scores, missing_packages, score
from trainer.evaluation.report import PAGE_DIALOGUES, AnsweredDialogue, AnsweredRound, Picture
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import Exchange, Seen, Speaker, answer_text, look, messages_of, prompt_of
from trainer.inference.generate import Generator, Sampling, position_limit
from trainer.training.loop import Evaluation, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredAnswers:
    """What a model answered to held-out questions. `dialogues`: one for every sample, as the report wants them."""

    scores: Scores
    dialogues: tuple[AnsweredDialogue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A dialogue that grew too long: the round, from 1, that could not be asked, and the positions it would take."""

    id: str
    round: int
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Dialogues as they were held, and those that ended early."""

    dialogues: tuple[AnsweredDialogue, ...]
    cut: tuple[Cut, ...]


def check_model_fits_build(speaker: Speaker, manifest: Manifest) -> list[str]:
    """Why a model cannot be measured on the build with this manifest; one line each."""
    problems = []
    tokenizer, template = speaker.chat_tokenizer.tokenizer, speaker.chat_tokenizer.template
    got, wanted = manifest.tokenizer.fingerprint, tokenizer.fingerprint
    if got != wanted:
        problems.append(
            f"tokenizer: this build's is {got[:12]} but the model's is {wanted[:12]}; rebuild with the "
            "tokenizer folder of the model's own build"
        )
    if manifest.template != template.source:
        problems.append(
            f"template: this build was compiled with {manifest.config.template}, whose text is not that "
            "of the model's; rebuild with the model's template"
        )
    for name in (field.name for field in fields(Geometry) if field.name != "max_pixels"):
        ours, theirs = getattr(speaker.geometry, name), getattr(manifest.config.image, name)
        if ours != theirs:
            problems.append(
                f"image.{name}: this build's is {theirs} but the model was made for {ours}; rebuild with image: "
                f"{{{name}: {ours}}}"
            )
    tokens, wanted_tokens = manifest.config.image_tokens, speaker.model.image_tokens
    if tokens != wanted_tokens:
        problems.append(
            f"image_tokens: this build has {tokens} but the model makes {wanted_tokens} of an image; rebuild with "
            f"image_tokens: {wanted_tokens}"
        )
    limit, longest = position_limit(speaker.model), manifest.config.limits.max_length
    if limit is not None and longest > limit:
        problems.append(
            f"limits.max_length: this build has samples of up to {longest} positions but the model reads {limit} at "
            f"most; rebuild with limits: {{max_length: {limit}}}"
        )
    if not manifest.has_samples(SPLIT):
        problems.append("this build has no held-out samples; rebuild with split: {eval: 0.01}")
    return problems


def held_out_loss(speaker: Speaker, build: Build, *, rows: int, workers: int, advance: Advance) -> Evaluation:
    """The mean loss over all trained tokens of the held-out split. Raises ShardError or TrainError.

    rows: packed rows at once. advance is told of samples.
    """
    loader = Loader(
        build,
        split=SPLIT,
        batch_size=rows,
        max_length=build.manifest.config.limits.max_length,
        workers=workers,
    )
    ranks = Ranks(rank=0, world_size=1, device=_device(speaker))
    return evaluate(speaker.model, _counted(loader, advance), build.datasets, ranks=ranks)


def held_out_questions(speaker: Speaker, build: Build, *, limit: int | None) -> list[Question]:
    """What `answer_held_out` is to ask. Raises ConfigError if what scores it is not installed, or ShardError."""
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
) -> ScoredAnswers:
    """Ask and score. Raises ShardError or TrainError. advance is told of answers."""
    generator, tokenizer = Generator(speaker.model, speaker.chat_tokenizer), speaker.chat_tokenizer.tokenizer
    answers = [""] * len(questions)
    for numbers in _batches({number: question.positions for number, question in enumerate(questions)}, batch):
        asked = [questions[number] for number in numbers]
        prompts = [prompt_for(build, question, speaker.geometry, tokenizer.image_id) for question in asked]
        keys = [(question.dataset, question.key, question.number) for question in asked]
        for number, tokens in zip(numbers, generator.batch(prompts, sampling, keys=keys), strict=True):
            answers[number] = answer_text(tokenizer, tokens, questions[number].end_id)
        advance(len(numbers))
    scores = score(
        Answered(
            dataset=question.dataset,
            key=f"{question.key}, answer {question.number + 1}",
            kind=question.kind,
            prediction=answer,
            references=question.references,
        )
        for question, answer in zip(questions, answers, strict=True)
    )
    return ScoredAnswers(scores=scores, dialogues=tuple(_dialogues(speaker, build, questions, answers, scores)))


def see_dialogues(speaker: Speaker, dialogues: Sequence[Dialogue]) -> dict[Path, Seen]:
    """Their pictures. Raises TrainError with all pictures that are none and all dialogues that cannot be held."""
    seen: dict[Path, Seen] = {}
    problems: dict[str, None] = {}
    for dialogue in dialogues:
        for image in dialogue.images:
            if image.path not in seen:
                try:
                    seen[image.path] = look(image.path, speaker.geometry)
                except TrainError as error:
                    problems[f"dialogue {dialogue.id!r}: {error}"] = None
        blank = Seen(path=Path(), pixels=torch.zeros(0))
        held = [
            Exchange(question=round_.question, pictures=(blank,) * len(round_.images), answer="!")
            for round_ in dialogue.rounds
        ]
        try:
            speaker.chat_tokenizer.encode(messages_of(held))
        except (ControlTextError, TemplateError) as error:
            problems[f"dialogue {dialogue.id!r}: {error}"] = None
    if problems:
        raise TrainError("\n".join(problems))
    return seen


def hold_dialogues(
    speaker: Speaker,
    dialogues: Sequence[Dialogue],
    seen: Mapping[Path, Seen],
    sampling: Sampling,
    *,
    batch: int,
    advance: Advance,
) -> Held:
    """Ask all dialogues' first questions, then all second ones, and so on. advance is told of rounds."""
    generator, tokenizer = Generator(speaker.model, speaker.chat_tokenizer), speaker.chat_tokenizer.tokenizer
    held: list[list[Exchange]] = [[] for _ in dialogues]
    cut: dict[int, Cut] = {}
    for number in range(max((len(dialogue.rounds) for dialogue in dialogues), default=0)):
        prompts: dict[int, Prompt] = {}
        for place, dialogue in enumerate(dialogues):
            if number < len(dialogue.rounds) and place not in cut:
                asked = dialogue.rounds[number]
                pictures = tuple(seen[image.path] for image in asked.images)
                held[place].append(Exchange(question=asked.question, pictures=pictures))
                prompt = prompt_of(held[place], speaker, end_id=generator.end_id)
                if generator.limit is not None and len(prompt.ids) >= generator.limit:
                    cut[place] = Cut(id=dialogue.id, round=number + 1, positions=len(prompt.ids))
                    del held[place][-1]
                    advance(len(dialogue.rounds) - number)
                else:
                    prompts[place] = prompt
        for places in _batches({place: len(prompt.ids) for place, prompt in prompts.items()}, batch):
            keys = [(dialogues[place].id, number) for place in places]
            answers = generator.batch([prompts[place] for place in places], sampling, keys=keys)
            for place, tokens in zip(places, answers, strict=True):
                answer = answer_text(tokenizer, tokens, generator.end_id)
                held[place][-1] = replace(held[place][-1], answer=answer)
            advance(len(places))
    return Held(dialogues=tuple(map(_answered, dialogues, held)), cut=tuple(cut[place] for place in sorted(cut)))


def _counted(loader: Loader, advance: Advance) -> Iterator[Batch]:
    for batch in loader:
        yield batch
        advance(sum(map(len, batch.samples)))


def _device(speaker: Speaker) -> torch.device:
    return next(speaker.model.parameters()).device


def _batches(lengths: Mapping[int, int], batch: int) -> Iterator[list[int]]:
    """Numbers in groups of like length, the longest first: if memory does not suffice, that shows at once."""
    ordered = sorted(lengths, key=lambda number: -lengths[number])
    for start in range(0, len(ordered), batch):
        yield ordered[start : start + batch]


def _dialogues(
    speaker: Speaker, build: Build, questions: Sequence[Question], answers: Sequence[str], scores: Scores
) -> Iterator[AnsweredDialogue]:
    """The questions of a sample stand together, in order. Pictures' bytes are kept for those that the page can show."""
    rounds: list[AnsweredRound] = []
    made = 0
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        text, pictures = shown(build, question, speaker.chat_tokenizer.tokenizer, with_pictures=made < PAGE_DIALOGUES)
        rounds.append(
            AnsweredRound(
                question=text,
                answer=answer,
                pictures=pictures,
                references=question.references,
                scores=scores.answers[number],
            )
        )
        if number + 1 == len(questions) or questions[number + 1].index != question.index:
            yield AnsweredDialogue(id=question.key, rounds=tuple(rounds), dataset=question.dataset)
            rounds = []
            made += 1


def _answered(dialogue: Dialogue, held: Sequence[Exchange]) -> AnsweredDialogue:
    return AnsweredDialogue(
        id=dialogue.id,
        rounds=tuple(
            AnsweredRound(
                question=exchange.question,
                answer=exchange.answer or "",
                pictures=tuple(Picture(name=image.name, content=image.path) for image in asked.images),
            )
            for asked, exchange in zip(dialogue.rounds, held, strict=False)
        ),
    )
