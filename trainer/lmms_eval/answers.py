"""Answers to the questions of lmms-eval, and the losses of the choices that it offers, in batches.

Rules
- Every question is checked before the first is answered, so a run does not end at its last one. Images are read again
  for their batch: those of a benchmark do not fit into memory.
- Questions of similar length share a batch. That changes answers only by rounding. What is sampled is keyed by task,
  document and repetition, so it does not depend on the batch.

Shapes: B conversations, T tokens of the longest, M tokens of answers, V vocabulary, H hidden size.
"""

# ruff: noqa: N806 - names end in their shape

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from dst import IGNORE, ControlTextError, TemplateError
from dst.common.progress import Advance
from shards.loader.fields import BatchFields
from trainer.errors import TrainError
from trainer.evaluation.length_batches import length_batches
from trainer.inference.cached_decoder import Prompt
from trainer.inference.conversation import Speaker, answer_text, plan_prompt, prompt_of_messages
from trainer.inference.generate import Generator, Sampling
from trainer.lmms_eval.questions import Conversation, Question
from trainer.model.decoder_logits import finish_logits

_MOST_PROBLEMS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, and how many positions its prompt and how many tokens it took; 0 if the prompt was too long."""

    text: str
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceLoss:
    """The mean cross-entropy of an answer's tokens, its end token included, and whether greedy decoding gives them.

    Infinite if the conversation is too long.
    """

    loss: float
    is_greedy: bool


class Answerer:
    """Answers questions with one model."""

    def __init__(self, speaker: Speaker, *, batch: int, skip_too_long: bool) -> None:
        """skip_too_long: a question that leaves no position for an answer gets an empty one, and no error."""
        self.speaker, self._batch, self._skip_too_long = speaker, batch, skip_too_long
        self._generator = Generator(speaker.model, speaker.chat_tokenizer)

    def answers(self, questions: Sequence[Question], advance: Advance) -> list[Answer]:
        """The answers, in order. Raises TrainError. advance: called with the number of questions done."""
        lengths = self._checked(questions, advance)
        answers = [Answer(text="")] * len(questions)

        def sampling_of(number: int) -> Sampling:
            return questions[number].settings.sampling

        for sampling, numbers in groupby(sorted(lengths, key=lambda number: repr(sampling_of(number))), sampling_of):
            for batch in length_batches({number: lengths[number] for number in numbers}, self._batch):
                prompts = [self._prompt(questions[number].read()) for number in batch]
                keys = [questions[number].key for number in batch]
                for number, prompt, tokens in zip(
                    batch, prompts, self._generator.batch(prompts, sampling, keys=keys), strict=True
                ):
                    text = answer_text(self.speaker.chat_tokenizer.tokenizer, tokens, prompt.end_id)
                    answers[number] = Answer(
                        text=questions[number].settings.cut(text),
                        prompt_tokens=len(prompt.ids),
                        new_tokens=len(tokens),
                    )
                advance(len(batch))
        return answers

    @torch.no_grad()
    def losses(self, questions: Sequence[Question], advance: Advance) -> list[ChoiceLoss]:
        """Of the answer of each question's conversation, in order. Raises TrainError. advance: as for `answers`."""
        lengths = self._checked(questions, advance)
        losses = [ChoiceLoss(loss=math.inf, is_greedy=False)] * len(questions)
        for batch in length_batches(lengths, self._batch):
            judged = self._losses([questions[number].read() for number in batch])
            for number, loss in zip(batch, judged, strict=True):
                losses[number] = loss
            advance(len(batch))
        return losses

    def _checked(self, questions: Sequence[Question], advance: Advance) -> dict[int, int]:
        """Number -> positions of the questions to ask. Raises TrainError with all problems of all of them."""
        lengths: dict[int, int] = {}
        problems: dict[str, None] = {}
        for number, question in enumerate(questions):
            try:
                conversation = question.read()
                length = self._length(conversation)
            except (TrainError, TemplateError, ControlTextError) as error:
                problems[f"{question.where}: {error}"] = None
                continue
            if self._generator.limit is None or length < self._generator.limit:
                lengths[number] = length
            elif self._skip_too_long:
                advance(1)
            else:
                problems[
                    f"{question.where}: it takes {length} positions with its images, and the model reads at most "
                    f"{self._generator.limit}; set skip_too_long=True to count such questions as answered wrongly"
                ] = None
        if problems:
            more = len(problems) - _MOST_PROBLEMS
            lines = list(problems)[:_MOST_PROBLEMS]
            raise TrainError("\n".join([*lines, f"and {more} more problems"] if more > 0 else lines))
        return lengths

    def _length(self, conversation: Conversation) -> int:
        sizes = [image.size for image in conversation.images]
        plan = plan_prompt(conversation.messages, sizes, self.speaker, limit=self._generator.limit)
        return len(plan.ids) + (0 if conversation.answer is None else len(self._answer_tokens(conversation)[0]))

    def _prompt(self, conversation: Conversation) -> Prompt:
        generator = self._generator
        return prompt_of_messages(
            conversation.messages,
            conversation.images,
            self.speaker,
            end_id=generator.end_id,
            limit=generator.limit,
        )

    def _answer_tokens(self, conversation: Conversation) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The ids after the prompt up to the end of the answer, and their labels."""
        chat = self.speaker.chat_tokenizer
        start = len(chat.encode(conversation.messages, add_generation_prompt=True).ids)
        answer = {"role": "assistant", "content": conversation.answer}
        encoded = chat.encode([*conversation.messages, answer])
        end = encoded.trained[-1][1]
        return encoded.ids[start:end].astype(np.int64), encoded.labels[start:end].astype(np.int64)

    def _losses(self, conversations: Sequence[Conversation]) -> Iterator[ChoiceLoss]:
        model, generator = self.speaker.model, self._generator
        prompts = [self._prompt(conversation) for conversation in conversations]
        batch = _batch_of(prompts, [self._answer_tokens(conversation) for conversation in conversations])
        tensors = {name: tensor.to(generator.device) for name, tensor in batch.tensors().items()}
        hidden_BTH = model.hidden_states(BatchFields(**tensors))
        labels_BT = tensors["labels"]
        rows_M, columns_M = (labels_BT != IGNORE).nonzero(as_tuple=True)
        head = model.decoder.get_output_embeddings()
        logits_MV = finish_logits(model.decoder.config, head(hidden_BTH[rows_M, columns_M - 1])).float()
        targets_M = labels_BT[rows_M, columns_M]
        losses_M = functional.cross_entropy(logits_MV, targets_M, reduction="none").cpu()
        likeliest = generator.choose(logits_MV, [generator.end_id] * len(targets_M), [], [])  # greedy
        is_likeliest_M = torch.tensor(likeliest) == targets_M.cpu()
        for row in range(len(prompts)):
            own = rows_M.cpu() == row
            yield ChoiceLoss(loss=float(losses_M[own].mean()), is_greedy=bool(is_likeliest_M[own].all()))


def _batch_of(
    prompts: Sequence[Prompt], answers: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
) -> BatchFields[torch.Tensor]:
    """Conversations as a batch of the loader: each is a sequence of its own, padded on the right."""
    lengths = [len(prompt.ids) + len(ids) for prompt, (ids, _) in zip(prompts, answers, strict=True)]
    shape = (len(prompts), max(lengths))
    ids, positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORE, np.int64)
    slots: list[tuple[int, int]] = []
    for row, (prompt, (answer_ids, answer_labels)) in enumerate(zip(prompts, answers, strict=True)):
        start, end = len(prompt.ids), lengths[row]
        ids[row, :start], ids[row, start:end] = prompt.ids, answer_ids
        labels[row, start:end] = answer_labels
        positions[row, :end] = np.arange(end)
        segments[row, :end] = 1
        slots += [(row, slot) for slot in prompt.slots]
    return BatchFields(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segments),
        branch_ids=torch.zeros(shape, dtype=torch.int32),
        images=torch.cat([prompt.images for prompt in prompts]),
        image_slots=torch.tensor(slots, dtype=torch.int64).reshape(-1, 2),
    )
