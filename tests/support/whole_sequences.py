"""The slow twin of every cache: the logits of a whole sequence in one forward, as training computes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.support.model_batches import unlabelled
from trainer.inference.cached_decoder import Prompt
from trainer.model.vision_chat import VisionChatModel


@torch.no_grad()
def whole_logits(model: VisionChatModel, prompt: Prompt, tokens: Sequence[int] = ()) -> torch.Tensor:
    """The logits [V] after a prompt and the tokens behind it."""
    slots = torch.tensor([(0, slot) for slot in prompt.slots], dtype=torch.int64).reshape(-1, 2)
    ids = torch.tensor([[*prompt.ids.tolist(), *tokens]])
    return model.logits(unlabelled(ids, prompt.images, slots))[0, -1]
