"""A tokenized conversation: the result of dst.ChatTokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

IGNORE = -100
"""The label of a position that is not trained on (torch.nn.CrossEntropyLoss's default ignore_index)."""

Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized conversation.

    ids, labels: int32 [T]; labels are IGNORE where not trained.
    trained: the token range [start, end) of each trained span.
    control_texts: how many control strings or template words the data contains, or completes with its neighbours.
    images_moved: whether the template moved an image out of its place within a text.
    """

    text: str
    ids: Array
    labels: Array
    trained: tuple[tuple[int, int], ...]
    images: int
    control_texts: int
    images_moved: bool = False

    @property
    def trained_tokens(self) -> int:
        return sum(end - start for start, end in self.trained)

    def cut(self, tokens: int) -> Encoded:
        """The first `tokens` tokens, at least one of them in the only trained span; `text` stays that of the whole.

        The end token of the span is cut off with the rest, so the model is not trained to stop there.
        """
        ((start, end),) = self.trained
        assert start < tokens <= len(self.ids), (start, tokens, len(self.ids))
        return replace(self, ids=self.ids[:tokens], labels=self.labels[:tokens], trained=((start, min(tokens, end)),))
