"""Answers of a VisionChatModel, token by token: one conversation round after round, or a batch of prompts at once.

Rules
- The KV cache only saves work: the tokens are those that a forward over the whole sequence for each token would give.
- In a later round only the positions from the first one on where ids or images differ from the cache are computed. So
  the conversation may change in any way, and the answer is to its current form.
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
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dst import ChatTokenizer, Message
from trainer.errors import TooLongError, TrainError
from trainer.inference.cached_decoder import CachedDecoder, Prompt
from trainer.inference.uncached_decoder import UncachedDecoder, cache_is_right
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
    """Generates answers with one model. It sets the model to evaluation mode."""

    def __init__(self, model: VisionChatModel, chat: ChatTokenizer) -> None:
        self.model = model.eval()
        self.limit = position_limit(model)
        self.end_id, _ = answer_controls(chat)
        self.device = next(model.parameters()).device
        self.uses_cache = cache_is_right(self.model, self.device)
        self._decoder = CachedDecoder if self.uses_cache else UncachedDecoder
        size = model.decoder.get_output_embeddings().weight.shape[0]
        forbidden = torch.zeros(size, dtype=torch.bool)
        forbidden[forbidden_ids(chat, size)] = True
        self._forbidden = forbidden.to(self.device)

    def new_decoder(self, rows: int) -> CachedDecoder | UncachedDecoder:
        """A decoder that has read nothing, for this many sequences."""
        return self._decoder(self.model, rows, self.device)

    def session(self) -> Session:
        """A new conversation with a KV cache of its own."""
        return Session(self)

    def max_tokens(self, prompt: Prompt, sampling: Sampling) -> int:
        """Most tokens that the answer may have. Raises TooLongError if that is none."""
        if self.limit is None:
            return sampling.max_new_tokens
        if len(prompt.ids) >= self.limit:
            raise TooLongError(len(prompt.ids), self.limit)
        return min(sampling.max_new_tokens, self.limit - len(prompt.ids))

    @torch.no_grad()
    def batch(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, keys: Sequence[Sequence[Hashable]] = ()
    ) -> list[list[int]]:
        """The tokens of the answers to all prompts, each with its end token unless the length limit ended it.

        keys: of each answer, what its samples depend on in addition to the seed, so that they do not depend on the
        batch; default: its index. Raises TooLongError.
        """
        limits = [self.max_tokens(prompt, sampling) for prompt in prompts]
        randoms = [random_of(sampling, key) for key in keys or [(index,) for index in range(len(prompts))]]
        decoder = self.new_decoder(len(prompts))
        logits = decoder.read_padded(prompts)
        positions = torch.tensor([[len(prompt.ids)] for prompt in prompts], device=self.device)
        end_ids = [prompt.end_id for prompt in prompts]
        samplings = [sampling] * len(prompts)
        answers: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        while True:
            tokens = self.choose(logits, end_ids, samplings, randoms)
            for row in sorted(open_rows):
                answers[row].append(tokens[row])
                if tokens[row] == end_ids[row] or len(answers[row]) == limits[row]:
                    open_rows.remove(row)
            if not open_rows:
                return answers
            if self.limit is not None:  # finished sequences continue; their tokens are not used
                positions = positions.clamp(max=self.limit - 1)
            logits = decoder.read_tokens(tokens, positions)
            positions = positions + 1

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
    """A conversation of several rounds: what the model has read stays in a KV cache."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._ids = np.zeros(0, np.int64)
        self._slots: tuple[int, ...] = ()
        self._images: Sequence[torch.Tensor] = ()
        self._decoder = self._generator.new_decoder(1)

    @torch.no_grad()
    def answer(self, prompt: Prompt, sampling: Sampling, *, key: Sequence[Hashable] = ()) -> Iterator[int]:
        """The answer's tokens, one by one; the end token is the last, unless the length limit ended the answer.

        The caller may stop at any token. key: what samples depend on in addition to the seed. Raises TooLongError.
        """
        generator = self._generator
        max_tokens, random = generator.max_tokens(prompt, sampling), random_of(sampling, key)
        try:
            logits = self._read(prompt)
            for number in range(1, max_tokens + 1):
                (token,) = generator.choose(logits, [prompt.end_id], [sampling], [random])
                yield token
                if token == prompt.end_id or number == max_tokens:
                    return
                logits = self._decoder.read_tokens([token], torch.tensor([[len(self._ids)]]))
                self._ids = np.append(self._ids, token)
        except GeneratorExit:
            raise
        except BaseException:  # some layers may have cached tokens that others have not
            self.reset()
            raise

    def _read(self, prompt: Prompt) -> torch.Tensor:
        """Read what is new in the prompt; returns the logits after it."""
        kept = self._num_shared(prompt)
        if not self._decoder.crop(len(self._ids) - kept):
            self.reset()
            kept = 0
        first = sum(slot < kept for slot in prompt.slots)
        new = Prompt(
            ids=prompt.ids[kept:],
            images=prompt.images[first:],
            slots=tuple(slot - kept for slot in prompt.slots[first:]),
            end_id=prompt.end_id,
        )
        logits = self._decoder.read_padded([new], first_position=kept)
        self._ids, self._slots, self._images = prompt.ids, prompt.slots, tuple(prompt.images)
        return logits

    def _num_shared(self, prompt: Prompt) -> int:
        """How many positions from the start are in the cache and unchanged; at least one position is left to read."""
        length = min(len(self._ids), len(prompt.ids) - 1)
        different = np.flatnonzero(self._ids[:length] != prompt.ids[:length])
        kept = int(different[0]) if len(different) else length
        for number, slot in enumerate(prompt.slots):
            if slot >= kept:
                break
            is_complete = slot + self._generator.model.image_tokens <= kept
            if not is_complete or slot not in self._slots[number : number + 1]:
                return slot
            if not torch.equal(self._images[number], prompt.images[number]):
                return slot
        return kept


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
