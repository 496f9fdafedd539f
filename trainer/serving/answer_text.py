"""The text of an answer while its tokens come: complete characters, without outer white space, up to a stop string.

Rule: the pieces joined are the text of `trainer.inference.conversation.answer_text`, cut before the first stop string.
A text that may be the beginning of a stop string is held back, so no part of one is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from dst.tokenizer import TextTokenizer
from trainer.inference.conversation import TextStream


class AnswerText:
    """stop: texts that end the answer and are not part of it."""

    def __init__(self, tokenizer: TextTokenizer, stop: Sequence[str] = ()) -> None:
        self.is_stopped = False
        """Whether a stop string came; what follows is not shown"""
        self._stream, self._stop = TextStream(tokenizer), tuple(stop)
        self._held = ""
        self._has_begun = False

    def add(self, token: int) -> str:
        """The text that can be shown now."""
        return "" if self.is_stopped else self._show(self._stream.add(token))

    def end(self) -> str:
        """The text that was held back; the answer has ended."""
        if self.is_stopped:
            return ""
        piece = self._show(self._stream.end())
        rest = "" if self.is_stopped else self._held.rstrip()
        self._held = ""
        return piece + self._begun(rest)

    def _show(self, text: str) -> str:
        self._held += text
        end = min((start for start in map(self._held.find, self._stop) if start >= 0), default=-1)
        if end >= 0:
            self.is_stopped = True
            shown, self._held = self._held[:end].rstrip(), ""
            return self._begun(shown)
        kept = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        shown = self._held[: len(self._held) - kept].rstrip()
        self._held = self._held[len(shown) :]
        return self._begun(shown)

    def _begun(self, text: str) -> str:
        """The text without white space before the answer's first word."""
        text = text if self._has_begun else text.lstrip()
        self._has_begun = self._has_begun or bool(text)
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text begin the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
