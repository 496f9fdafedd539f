"""Whether a message is trained, by the flag that its record has: `loss`, `weight`, `train` and their like.

Rule: true and 1 train an answer, false and 0 keep it as context. Anything else is a reject: a weight of 0.5 cannot be
kept, and a question is never trained.
"""

from __future__ import annotations

from typing import Any

from preprocess.adapters.parsing.fields import show
from preprocess.conversation import Role
from preprocess.errors import RejectError

FLAGS = ("loss", "weight", "train", "trained", "training", "loss_mask", "loss_weight", "loss_scale", "train_on_turn")


def is_trained(message: dict[str, Any], role: Role) -> bool:
    """True for an answer without a flag. Raises RejectError for a flag that cannot be kept."""
    flags = {name: _flag(name, message[name]) for name in FLAGS if message.get(name) is not None}
    if len({*flags.values()}) > 1:
        raise RejectError("bad_value", f"{' and '.join(flags)} contradict each other; expected one of them")
    if role != "assistant" and any(flags.values()):
        name = next(iter(flags))
        raise RejectError(
            "bad_value", f"{name} is {show(message[name])} in a turn of the {role}; only answers are trained"
        )
    return all(flags.values())


def _flag(name: str, value: Any) -> bool:
    if type(value) in (bool, int, float) and value in (0, 1):
        return bool(value)
    raise RejectError("bad_value", f"{name} is {show(value)}; expected 0, 1, true or false")
