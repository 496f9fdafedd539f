"""Answers of a VisionChatModel, token by token: one conversation round after round, or a batch of prompts at once.

Rules
- Caches only save work: the tokens are those that a forward over the whole sequence for each token would give.
- In a later round only the positions from the first one on where ids or images differ from what was read are computed.
  So the conversation may change in any way, and the answer is to its current form.
- Images and beginnings of prompts that are known from earlier rounds, conversations or batches are not computed again.
- An answer contains no control tokens but those that the template itself writes in answers, and only ids that the
  tokenizer has.

    generator = Generator(model, chat_tokenizer)
    session = generator.session()
    for token in session.answer(prompt, Sampling()): ...  # the last is prompt.end_id, or a length limit was met
    answers = generator.batch(prompts, Sampling(), keys=[("vqa", "7"), ...])

Shapes: B sequences, V vocabulary.
"""

# ruff: noqa: N803, N806 - names end in their shape

from __future__ import annotations

import hashlib
import threading
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dst import ChatTokenizer, Message
from trainer.errors import TooLongError, TrainError
from trainer.inference.cached_decoder import Prompt
from trainer.inference.caches import CacheSettings
from trainer.inference.open_rows import plan_rows
from trainer.inference.rows import Rows
from trainer.inference.state_cache import StateCache
from trainer.inference.weights_mark import weights_mark
from trainer.model.decoder import attention_window, max_positions
from trainer.model.vision_chat import VisionChatModel

SMALLEST_TEMPERATURE = 1e-6
"""Logits are not divided by less"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are sampled."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    """0: always the likeliest token"""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability"""
    seed: int = 0

    def problems(self) -> list[str]:
        """Problems of the values, one line each."""
        checks = (
            ("max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, up to 1"),
        )
        return [f"--{name}: got {value}; expected {expected}" for name, value, holds, expected in checks if not holds]


class Generator:
    """Generates answers with one model. It sets the model to evaluation mode.

    Batches and sessions share what is kept of images and prompts; it is forgotten when the model's weights change. They
    may run in different threads. cache: how much is kept.
    """

    def __init__(self, model: VisionChatModel, chat: ChatTokenizer, cache: CacheSettings | None = None) -> None:
        self.model = model.eval()
        self.limit = position_limit(model)
        self.end_id, _ = answer_controls(chat)
        self.device = next(model.parameters()).device
        self.plan = plan_rows(self.model, self.device, self.limit)
        """How the model reads, which was tried on a few tokens"""
        self.cache_settings = cache or CacheSettings()
        self._lock = threading.Lock()
        self._cache: tuple[StateCache, tuple[str, ...]] | None = None
        self._mark: tuple[int, ...] = ()
        size = model.decoder.get_output_embeddings().weight.shape[0]
        forbidden = torch.zeros(size, dtype=torch.bool)
        forbidden[forbidden_ids(chat, size)] = True
        self._forbidden = forbidden.to(self.device)

    @property
    def cache(self) -> StateCache:
        """What is kept for these weights. Raises TrainError if the folder of the settings cannot be used."""
        return self._opened()[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """A line if the folder of the settings is not used. Raises as `cache` does."""
        return self._opened()[1]

    def session(self) -> Session:
        """A new conversation, whose keys and values stay in memory of its own."""
        return Session(self)

    def max_tokens(self, prompt: Prompt, sampling: Sampling) -> int:
        """Most tokens that the answer may have. Raises TooLongError if that is none."""
        if self.limit is None:
            return sampling.max_new_tokens
        if len(prompt.ids) >= self.limit:
            raise TooLongError(len(prompt.ids), self.limit)
        return min(sampling.max_new_tokens, self.limit - len(prompt.ids))

    def batch(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, keys: Sequence[Sequence[Hashable]] = ()
    ) -> list[list[int]]:
        """The tokens of the answers to all prompts, each with its end token unless the length limit ended it.

        keys: of each answer, what its samples depend on in addition to the seed, so that they do not depend on the
        batch; default: its index. Raises TooLongError.
        """
        limits = [self.max_tokens(prompt, sampling) for prompt in prompts]
        keys = keys or [(index,) for index in range(len(prompts))]
        try:
            return self._batch(prompts, sampling, limits, keys)
        except torch.OutOfMemoryError:
            if not self.cache.num_bytes:
                raise
        self.cache.clear()
        return self._batch(prompts, sampling, limits, keys)

    def _batch(
        self, prompts: Sequence[Prompt], sampling: Sampling, limits: Sequence[int], keys: Sequence[Sequence[Hashable]]
    ) -> list[list[int]]:
        randoms = [random_of(sampling, key) for key in keys]
        rows = self.plan.open(len(prompts), self.cache)
        answers: list[list[int]] = [[] for _ in prompts]
        joined = rows.join_all(prompts)
        order = [index for index, _ in joined]
        logits_BV = torch.stack([read.logits_V for _, read in joined])
        while True:
            end_ids = [prompts[index].end_id for index in order]
            tokens = self.choose(logits_BV, end_ids, [sampling] * len(order), [randoms[index] for index in order])
            for row in reversed(range(len(order))):  # so that the row that takes the place of another was looked at
                index, token = order[row], tokens[row]
                answers[index].append(token)
                if token == prompts[index].end_id or len(answers[index]) == limits[index]:
                    rows.leave(row, keep=True)
                    for of_rows in (order, tokens):
                        of_rows[row] = of_rows[-1]
                        del of_rows[-1]
            if not order:
                return answers
            logits_BV = rows.step(tokens)

    def _opened(self) -> tuple[StateCache, tuple[str, ...]]:
        with self._lock:
            mark = weights_mark(self.model)
            if self._cache is None or mark != self._mark:
                counts = (self._cache[0].hits, self._cache[0].misses) if self._cache else (0, 0)
                self._cache, self._mark = self.cache_settings.open(self.plan), mark
                self._cache[0].count(hits=counts[0], misses=counts[1])
            return self._cache

    def choose(
        self,
        logits_BV: torch.Tensor,
        end_ids: Sequence[int],
        samplings: Sequence[Sampling],
        randoms: Sequence[torch.Generator],
    ) -> list[int]:
        """The next token of each sequence. Raises TrainError for logits that are not finite."""
        logits_BV = logits_BV.float()
        if not bool(logits_BV.isfinite().all()):
            raise TrainError(
                "the model's output is NaN or infinite; its weights are damaged, or its precision overflows"
            )
        ends = torch.tensor(end_ids, device=self.device)[:, None]
        allowed_BV = logits_BV.masked_fill(self._forbidden, float("-inf")).scatter(1, ends, logits_BV.gather(1, ends))
        tokens = [int(token) for token in allowed_BV.argmax(-1).tolist()]
        for row, (sampling, random) in enumerate(zip(samplings, randoms, strict=True)):
            if sampling.temperature:
                # a smaller temperature would make infinite logits, and means the same: the likeliest token
                temperature = max(sampling.temperature, SMALLEST_TEMPERATURE)
                probabilities_V = (allowed_BV[row].cpu() / temperature).softmax(-1)
                tokens[row] = _sample(probabilities_V, sampling.top_p, random)
        return tokens


class Session:
    """A conversation of several rounds: what the model has read stays in memory, whatever the cache's bound is."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.reset()

    def reset(self) -> None:
        """Forget the conversation. Its images may be known later, see Generator."""
        self._rows: Rows | None = None
        self._cache: StateCache | None = None
        self._is_open = False
        """Whether an answer has not left its row"""

    @torch.no_grad()
    def answer(self, prompt: Prompt, sampling: Sampling, *, key: Sequence[Hashable] = ()) -> Iterator[int]:
        """The answer's tokens, one by one; the end token is the last, unless the length limit ended the answer.

        The caller may stop at any token. key: what samples depend on in addition to the seed. Raises TooLongError.
        """
        generator = self._generator
        max_tokens, random = generator.max_tokens(prompt, sampling), random_of(sampling, key)
        rows = self._current_rows()
        try:
            *_, read = rows.join(prompt)
            assert read is not None, "the last piece gives the logits"
            self._is_open, logits_1V = True, read.logits_V[None]
            for number in range(1, max_tokens + 1):
                (token,) = generator.choose(logits_1V, [prompt.end_id], [sampling], [random])
                yield token
                if token == prompt.end_id or number == max_tokens:
                    break
                logits_1V = rows.step([token])
            self._leave()
        except GeneratorExit:
            self._leave()
            raise
        except BaseException:  # some layers may have read tokens that others have not
            self.reset()
            raise

    def _current_rows(self) -> Rows:
        """The conversation's row, if its keys and values are of the model's weights; else one that has read nothing."""
        cache = self._generator.cache
        if self._rows is None or cache is not self._cache:
            self.reset()
            self._rows, self._cache = self._generator.plan.open(1, cache), cache
        self._leave()
        return self._rows

    def _leave(self) -> None:
        if self._is_open and self._rows is not None:
            self._rows.leave(0, keep=True)
        self._is_open = False


def position_limit(model: VisionChatModel) -> int | None:
    """The most positions that the model can read; None if there is no limit."""
    limits = [max_positions(model.decoder.config)]
    if model.uses_layout:
        limits.append(attention_window(model.decoder.config))  # attention by a layout defines no windows
    return min((limit for limit in limits if limit), default=None)


def answer_controls(chat: ChatTokenizer) -> tuple[int, frozenset[int]]:
    """The token with which the template ends answers, and all control tokens that it writes in answers."""
    question: Message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    encoded = chat.encode([question, {"role": "assistant", "content": "!"}])
    start, end = encoded.trained[0]
    ids = [int(index) for index in encoded.ids[start:end]]
    return ids[-1], chat.tokenizer.control_ids.intersection(ids)


def forbidden_ids(chat: ChatTokenizer, num_rows: int) -> list[int]:
    """The ids that no answer contains, of a head with this many rows; exports name them for transformers."""
    _, in_answers = answer_controls(chat)
    controls = sorted(chat.tokenizer.control_ids - in_answers)
    return sorted({*controls, *range(chat.tokenizer.vocabulary_size, num_rows)})


def _sample(probabilities_V: torch.Tensor, top_p: float, random: torch.Generator) -> int:
    if top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        is_kept_V = sorted_V.cumsum(0) - sorted_V < top_p
        is_kept_V[0] = True  # also where top_p is 0 in the precision of probabilities
        sorted_V = sorted_V.masked_fill(~is_kept_V, 0.0)
        return int(order_V[torch.multinomial(sorted_V, 1, generator=random)])
    return int(torch.multinomial(probabilities_V, 1, generator=random))


def random_of(sampling: Sampling, key: Sequence[Hashable]) -> torch.Generator:
    """What the samples of one answer are drawn from: the seed and the answer's key decide."""
    digest = hashlib.sha256(repr((sampling.seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
