"""Answers of a VisionChatModel, token by token: one conversation round after round, or a batch of prompts at once.

Rules
- The tokens are those that the whole sequence, computed anew for each of them, would give; a KV cache only saves work.
- In a later round only what is new is fed: from the first position on where ids or pictures differ from what the cache
  has read. So a history may change in any way and is still answered as it stands.
- An answer holds no control token but those that the template itself writes into answers, and no id that the tokenizer
  does not have.

    generator = Generator(model, chat_tokenizer)
    session = generator.session()
    for token in session.answer(prompt, Sampling()): ...           # ends with prompt.end_id, unless room ran out
    answers = generator.batch(prompts, Sampling(), keys=[("vqa", "7"), ...])

Shapes: B rows, V vocabulary.
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
from trainer.inference.cached_decoder import Prompt, Reader
from trainer.model.decoder import attention_window, max_positions
from trainer.model.vision_chat import VisionChatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    """0 takes the likeliest token always"""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability"""
    seed: int = 0

    def problems(self) -> list[str]:
        """What is wrong with the values, one line each."""
        checks = (
            ("max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature, 0 <= self.temperature < float("inf"), "0 or more"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, up to 1"),
        )
        return [f"--{name}: got {value}; wanted {wanted}" for name, value, holds, wanted in checks if not holds]


class Generator:
    """What answering needs beside a prompt. It sets the model to evaluation."""

    def __init__(self, model: VisionChatModel, chat: ChatTokenizer) -> None:
        self.model = model.eval()
        self.limit = position_limit(model)
        self.end_id, in_answers = answer_controls(chat)
        self.device = next(model.parameters()).device
        size = model.decoder.get_output_embeddings().weight.shape[0]
        forbidden = torch.arange(size) >= chat.tokenizer.vocabulary_size
        forbidden[sorted(chat.tokenizer.control_ids - in_answers)] = True
        self._forbidden = forbidden.to(self.device)

    def session(self) -> Session:
        """A conversation's memory."""
        return Session(self)

    def room(self, prompt: Prompt, sampling: Sampling) -> int:
        """Tokens that an answer may have. Raises TooLongError if that is none."""
        if self.limit is None:
            return sampling.max_new_tokens
        if len(prompt.ids) >= self.limit:
            raise TooLongError(len(prompt.ids), self.limit)
        return min(sampling.max_new_tokens, self.limit - len(prompt.ids))

    @torch.no_grad()
    def batch(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, keys: Sequence[Sequence[Hashable]] = ()
    ) -> list[list[int]]:
        """The answers to all prompts, each with its end token if it came to that.

        keys: what an answer's draws depend on beside the seed, so that they do not depend on its batch; default: its
        number. Raises TooLongError.
        """
        rooms = [self.room(prompt, sampling) for prompt in prompts]
        drawers = [_generator(sampling, key) for key in keys or [(number,) for number in range(len(prompts))]]
        reader = Reader(self.model, len(prompts), self.device)
        logits = reader.read_padded(prompts)
        positions = torch.tensor([[len(prompt.ids)] for prompt in prompts], device=self.device)
        end_ids = [prompt.end_id for prompt in prompts]
        answers: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        while True:
            tokens = self.choose(logits, end_ids, sampling, drawers)
            for row in sorted(open_rows):
                answers[row].append(tokens[row])
                if tokens[row] == end_ids[row] or len(answers[row]) == rooms[row]:
                    open_rows.remove(row)
            if not open_rows:
                return answers
            if self.limit is not None:  # rows that have ended go along; nobody reads what they give
                positions = positions.clamp(max=self.limit - 1)
            logits = reader.read_tokens(tokens, positions)
            positions = positions + 1

    def choose(
        self,
        logits_BV: torch.Tensor,
        end_ids: Sequence[int],
        sampling: Sampling,
        drawers: Sequence[torch.Generator],
    ) -> list[int]:
        """The next token of each row. Raises TrainError for logits that are no numbers."""
        logits_BV = logits_BV.float()
        if not bool(logits_BV.isfinite().all()):
            raise TrainError("the model's output is no number; its weights are damaged, or its precision overflows")
        ends = torch.tensor(end_ids, device=self.device)[:, None]
        allowed_BV = logits_BV.masked_fill(self._forbidden, float("-inf")).scatter(1, ends, logits_BV.gather(1, ends))
        if not sampling.temperature:
            return [int(token) for token in allowed_BV.argmax(-1).tolist()]
        rows = (allowed_BV.cpu() / sampling.temperature).softmax(-1)
        return [_draw(row, sampling.top_p, drawer) for row, drawer in zip(rows, drawers, strict=True)]


class Session:
    """A conversation that goes on: what the model has read stays in a KV cache."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self._read = np.zeros(0, np.int64)
        self._slots: tuple[int, ...] = ()
        self._images: Sequence[torch.Tensor] = ()
        self._reader = Reader(self._generator.model, 1, self._generator.device)

    @torch.no_grad()
    def answer(self, prompt: Prompt, sampling: Sampling, *, key: Sequence[Hashable] = ()) -> Iterator[int]:
        """The answer's tokens as they come; the end token is the last, unless room ran out.

        One may stop asking for more at any token. key: what draws depend on beside the seed. Raises TooLongError.
        """
        generator = self._generator
        room, drawer = generator.room(prompt, sampling), _generator(sampling, key)
        try:
            logits = self._read_on(prompt)
            for number in range(1, room + 1):
                (token,) = generator.choose(logits, [prompt.end_id], sampling, [drawer])
                yield token
                if token == prompt.end_id or number == room:
                    return
                logits = self._reader.read_tokens([token], torch.tensor([[len(self._read)]]))
                self._read = np.append(self._read, token)
        except GeneratorExit:
            raise
        except BaseException:  # some layers may have read what others have not
            self.reset()
            raise

    def _read_on(self, prompt: Prompt) -> torch.Tensor:
        """Read what is new in the prompt; the logits after it."""
        kept = self._common(prompt)
        if not self._reader.crop(len(self._read) - kept):
            self.reset()
            kept = 0
        first = sum(slot < kept for slot in prompt.slots)
        new = Prompt(
            ids=prompt.ids[kept:],
            images=prompt.images[first:],
            slots=tuple(slot - kept for slot in prompt.slots[first:]),
            end_id=prompt.end_id,
        )
        logits = self._reader.read_padded([new], first_position=kept)
        self._read, self._slots, self._images = prompt.ids, prompt.slots, tuple(prompt.images)
        return logits

    def _common(self, prompt: Prompt) -> int:
        """How many positions from the start are read already and the same. At least one is left to be fed."""
        length = min(len(self._read), len(prompt.ids) - 1)
        different = np.flatnonzero(self._read[:length] != prompt.ids[:length])
        kept = int(different[0]) if len(different) else length
        for number, slot in enumerate(prompt.slots):
            if slot >= kept:
                break
            whole = slot + self._generator.model.image_tokens <= kept
            if not whole or slot not in self._slots[number : number + 1]:
                return slot
            if not torch.equal(self._images[number], prompt.images[number]):
                return slot
        return kept


def position_limit(model: VisionChatModel) -> int | None:
    """The most positions that the model can read; None if nothing sets a limit."""
    limits = [max_positions(model.decoder.config)]
    if model.attention == "mmca":
        limits.append(attention_window(model.decoder.config))  # MMCA defines no windows
    return min((limit for limit in limits if limit), default=None)


def answer_controls(chat: ChatTokenizer) -> tuple[int, frozenset[int]]:
    """The token that the template ends answers with, and all control tokens that it writes into them."""
    question: Message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    encoded = chat.encode([question, {"role": "assistant", "content": "!"}])
    start, end = encoded.trained[0]
    ids = [int(index) for index in encoded.ids[start:end]]
    return ids[-1], chat.tokenizer.control_ids.intersection(ids)


def _draw(probabilities_V: torch.Tensor, top_p: float, drawer: torch.Generator) -> int:
    if top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(0) - sorted_V
        sorted_V = sorted_V.masked_fill(before_V >= top_p, 0.0)
        return int(order_V[torch.multinomial(sorted_V, 1, generator=drawer)])
    return int(torch.multinomial(probabilities_V, 1, generator=drawer))


def _generator(sampling: Sampling, key: Sequence[Hashable]) -> torch.Generator:
    digest = hashlib.sha256(repr((sampling.seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
