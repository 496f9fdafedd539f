"""The classes that lmms-eval makes and calls: one for tasks in its chat form, one for those in its older, simple form.

lmms-eval chooses the first, unless it is started with --force_simple, which tasks need that compare the losses of given
answers. Both ask the same question if a task only has images and a text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from dst.common.cli import note
from dst.common.progress import Advance, Bar
from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.errors import TrainError
from trainer.inference.open_model import open_model
from trainer.lmms_eval.answers import Answer, Answerer
from trainer.lmms_eval.generation_kwargs import AnswerSettings, answer_settings
from trainer.lmms_eval.processes import ending_all, own_device
from trainer.lmms_eval.questions import Conversation, Question, conversation_of, user_turn

_MOST_ROUNDS = 100
_SIMPLE_ARGUMENTS = 6
"""Of a request with a document; one for the metric acc_mutual_info only has two texts"""
_MODEL_ARGS = ("pretrained", "batch_size", "device", "max_new_tokens", "skip_too_long", "allow_extensions")


class DsvlSimple(lmms):  # type: ignore[misc]  # lmms-eval is not installed where types are checked
    """Requests of a text and images."""

    is_simple = True

    @ending_all()
    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        max_new_tokens: int = 1024,
        skip_too_long: bool = False,
        allow_extensions: str = "",
        **unknown: object,
    ) -> None:
        """pretrained: an exported folder, a run's folder or a checkpoint.

        max_new_tokens: of tasks that name none. skip_too_long: questions that the model is too short for get an empty
        answer. allow_extensions: encoders and projectors of other packages that the model may name, separated by
        spaces. Raises ConfigError for arguments that cannot be used, and as open_model does.
        """
        super().__init__()
        problems = [
            f"model_args.{name}: unknown{nearest(name, _MODEL_ARGS)}; expected {', '.join(_MODEL_ARGS)}"
            for name in unknown
        ]
        if not pretrained:
            problems.append("model_args.pretrained: missing; expected the folder of an exported model")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            problems.append(f"batch_size: got {batch_size!r}; expected a whole number from 1")
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            problems.append(f"model_args.max_new_tokens: got {max_new_tokens!r}; expected a whole number from 1")
        if type(skip_too_long) is not bool:
            problems.append(f"model_args.skip_too_long: got {skip_too_long!r}; expected True or False")
        if problems:
            raise ConfigError(problems)
        speaker, _ = open_model(
            Path(str(pretrained)), allow_extensions=str(allow_extensions).split(), device=device or own_device()
        )
        for line in speaker.notes:
            note(line)
        self._max_new_tokens = max_new_tokens
        self._answerer: Answerer | None = Answerer(speaker, batch=int(batch_size), skip_too_long=skip_too_long)
        self._device = next(speaker.model.parameters()).device

    @property
    def device(self) -> torch.device:
        """For lmms-eval, which gathers numbers of several processes there."""
        return self._device

    def clean(self) -> None:
        """Free the model's memory, for judges that run after it."""
        self._answerer = None
        super().clean()

    @ending_all()
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers, in order. Raises TrainError with all questions that cannot be asked."""
        reads = [partial(self._conversation, request) for request in requests]
        return [
            GenerationResult(
                text=answer.text,
                token_counts=TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=answer.new_tokens),
            )
            for answer in self._answers(requests, reads)
        ]

    @ending_all()
    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str] | GenerationResult]:
        """Of each request, the answers of all rounds, or what its task made of them. Raises as generate_until does.

        A round's prompt is what the task writes for it: earlier answers are in it if the task puts them there.
        """
        outputs: list[list[Any]] = [[] for _ in requests]
        infos: list[Any] = [None] * len(requests)
        pending = {number: partial(self._conversation, request) for number, request in enumerate(requests)}
        for round_number in range(1, _MOST_ROUNDS + 1):
            numbers = list(pending)
            answers = self._answers([requests[number] for number in numbers], list(pending.values()), round_number)
            pending = {}
            for number, answer in zip(numbers, answers, strict=True):
                outputs[number] = [*outputs[number], answer.text]
                messages, output, infos[number] = self._next_round(
                    requests[number], round_number, outputs[number], infos[number]
                )
                outputs[number] = list(output)
                if messages is not None:
                    pending[number] = partial(conversation_of, messages, self._loaded().speaker.geometry)
            if not pending:
                return list(map(_rounds, outputs))
        number = min(pending)
        raise TrainError(f"{_where(requests[number])}: has not ended after {_MOST_ROUNDS} rounds; correct the task")

    @ending_all()
    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each answer, as a pair, its loss and whether greedy decoding gives it. Raises as generate_until does.

        A loss and not the likelihood of the name: tasks take the answer with the lowest value, since lmms-eval's own
        models return losses (lmms_eval.api.task.ConfigurableTask.process_results). And in a GenerationResult, since
        lmms-eval 0.7.3 makes a string of any pair that is not in one (lmms_eval.api.instance.unwrap_generation_output).
        """
        if any(len(request.args) != _SIMPLE_ARGUMENTS for request in requests):
            raise TrainError("acc_mutual_info: not supported by this model; remove the metric from the task")
        settings = answer_settings({}, max_new_tokens=self._max_new_tokens)
        questions = [
            Question(where=_where(request), key=(), settings=settings, read=partial(self._judged, request))
            for request in requests
        ]
        with self._progress(len(questions)) as advance:
            losses = self._loaded().losses(questions, advance)
        return [GenerationResult(text=(loss.loss, loss.is_greedy)) for loss in losses]

    def _answers(
        self, requests: Sequence[Instance], reads: Sequence[Callable[[], Conversation]], round_number: int = 1
    ) -> list[Answer]:
        repetitions: Counter[tuple[Any, ...]] = Counter()
        questions: list[Question] = []
        for request, read in zip(requests, reads, strict=True):
            key = (*request.args[-3:], request.idx)
            repetitions[key] += 1
            questions.append(
                Question(
                    where=_where(request),
                    key=(*key, repetitions[key], round_number),
                    settings=self._settings(request),
                    read=read,
                )
            )
        with self._progress(len(questions)) as advance:
            return self._loaded().answers(questions, advance)

    def _settings(self, request: Instance) -> AnswerSettings:
        try:
            return answer_settings(self._generation_kwargs(request) or {}, max_new_tokens=self._max_new_tokens)
        except TrainError as error:
            raise TrainError(f"task {request.args[-2]}: generation_kwargs: {error}") from None

    def _generation_kwargs(self, request: Instance) -> Mapping[str, Any] | None:
        kwargs: Mapping[str, Any] | None = request.args[1]
        return kwargs

    def _conversation(self, request: Instance) -> Conversation:
        context, _, doc_to_visual, *_ = request.args
        messages = user_turn(context, doc_to_visual(self._document(request)))
        return conversation_of(messages, self._loaded().speaker.geometry)

    def _judged(self, request: Instance) -> Conversation:
        """The conversation of a request for a loss: with the answer that the task gives."""
        target = request.args[1]
        answer = target if isinstance(target, str) else target(self._document(request))
        return replace(self._conversation(request), answer=str(answer).strip())

    def _next_round(
        self, request: Instance, round_number: int, output: list[Any], info: object
    ) -> tuple[Sequence[Mapping[str, Any]] | None, Sequence[Any], Any]:
        """The messages of the next round, or None after the last; the answers as the task keeps them; its notes.

        output: the answers so far. info: the notes that the task made in the round before.
        """
        doc_to_text = request.args[3]
        visuals, text, is_over, output, info = doc_to_text(
            self._document(request), previous_output=output, round_idx=round_number, previous_round_info=info
        )
        return None if is_over else user_turn(text, visuals), output, info

    def _document(self, request: Instance) -> Any:
        document, task, split = request.args[-3:]
        return self.task_dict[task][split][document]

    def _loaded(self) -> Answerer:
        assert self._answerer is not None, "the model was used after clean()"
        return self._answerer

    @contextmanager
    def _progress(self, total: int) -> Iterator[Advance]:
        if self.rank:
            yield lambda amount: None
        else:
            with Bar().step("questions", total) as advance:
                yield advance


class DsvlChat(DsvlSimple):
    """Requests of messages, which may have images between their texts, and a system message."""

    is_simple = False

    def _generation_kwargs(self, request: Instance) -> Mapping[str, Any] | None:
        kwargs: Mapping[str, Any] | None = request.args[2]
        return kwargs

    def _conversation(self, request: Instance) -> Conversation:
        doc_to_messages = request.args[1]
        return conversation_of(doc_to_messages(self._document(request)), self._loaded().speaker.geometry)

    def _next_round(
        self, request: Instance, round_number: int, output: list[Any], info: object
    ) -> tuple[Sequence[Mapping[str, Any]] | None, Sequence[Any], Any]:
        doc_to_messages = request.args[1]
        messages, is_over, output, info = doc_to_messages(
            self._document(request), round_idx=round_number, previous_output=output, previous_round_info=info
        )
        return None if is_over else messages, output, info


def _rounds(outputs: list[Any]) -> list[str] | GenerationResult:
    """In a GenerationResult if not all are texts: lmms-eval 0.7.3 makes a string of such a list."""
    return outputs if all(isinstance(output, str) for output in outputs) else GenerationResult(text=outputs)


def _where(request: Instance) -> str:
    document, task, _ = request.args[-3:]
    return f"task {task}, document {document}"
