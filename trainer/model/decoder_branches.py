"""Whether a decoder can attend to samples with branches, tried on a few tokens before training."""

from __future__ import annotations

from typing import Any

import torch

from dst.errors import ConfigError
from trainer.attention.branched_causal import BRANCHED_CAUSAL
from trainer.attention.layout import build_layout
from trainer.attention.mmca import MMCA
from trainer.compat.transformers import reason
from trainer.model.decoder_checks import unused_parameters
from trainer.model.decoder_logits import nearly_equal
from trainer.model.decoder_protocol import CausalDecoder

_IDS = ((0, 2, 1, 1),)
_OTHER_BRANCH = ((0, 2, 0, 1),)
"""The same beginning and second branch next to another first one"""
_POSITIONS = ((0, 1, 2, 2),)
_BRANCHES = ((0, 0, 1, 2),)
_ALONE = 3
"""Tokens of the beginning and one branch"""
_ROUNDING = 0.1
"""Largest relative difference of computations by other kernels in half precision, which grows with each layer: that of
SmolLM2-135M's 30 layers is 0.026 in bf16, and 1e-6 in fp32"""


def prepare_for_branches(model: CausalDecoder, attention: str) -> None:
    """Let the decoder attend to samples with branches. Raises ConfigError if it cannot.

    attention: mmca or causal. After it a causal decoder takes an `attention_layout` in every forward, as with mmca.
    """
    has_weights = not model.get_input_embeddings().weight.is_meta
    if attention == "mmca":
        if has_weights:
            _check(model, None)
        return
    causal = _hidden(model, _ALONE) if has_weights else None
    BRANCHED_CAUSAL.register()
    model.set_attn_implementation(BRANCHED_CAUSAL.name)
    if has_weights:
        _check(model, causal)


def _check(model: CausalDecoder, causal: torch.Tensor | None) -> None:
    """Raises ConfigError unless two equal branches of one token each end as that token does behind the beginning alone,
    and the second as it does next to another first one.

    A layer that mixes tokens in another way than attention does (a convolution, a state) would mix branches too. The
    second comparison is of equal shapes, so rounding hides nothing in it.
    causal: what the decoder makes of the beginning and one branch with its own causal attention, which may add to the
    scores what no layout knows (a bias by distance, a trained mask); None if there is nothing to compare.
    """
    name, attention = type(model).__name__, MMCA if causal is None else BRANCHED_CAUSAL
    change = "choose another decoder, or build without share"
    alone_layout = build_layout(torch.zeros(1, _ALONE, dtype=torch.bool))
    layout = build_layout(torch.zeros(1, len(_IDS[0]), dtype=torch.bool), branch_ids=torch.tensor(_BRANCHES))
    try:
        with attention.counted() as calls:
            of_branches = _hidden(model, len(_IDS[0]), attention_layout=layout)[:, _ALONE - 1 :]
            alone = _hidden(model, _ALONE, attention_layout=alone_layout)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"model.decoder: {name} cannot do branches: {reason(error)}; {change}"]) from None
    if len(calls) != 2 * model.config.num_hidden_layers:
        raise ConfigError(
            [
                f"model.decoder: not all layers of {name} attend through transformers' attention interface, which "
                f"samples with branches need; {change}"
            ]
        )
    if causal is not None and not nearly_equal(alone, causal):
        raise ConfigError(
            [f"model.decoder: {name} adds to its attention what cannot be done for samples with branches; {change}"]
        )
    if causal is not None and (unused := unused_parameters(model, causal, alone)):
        raise ConfigError([f"model.decoder: samples with branches would leave {unused} of {name} untrained; {change}"])
    next_to_other = _hidden(model, len(_IDS[0]), ids=_OTHER_BRANCH, attention_layout=layout)[:, -1:]
    sees_other = not nearly_equal(next_to_other, of_branches[:, -1:])
    if sees_other or not _equal_but_for_rounding(of_branches, alone[:, -1:].expand_as(of_branches)):
        raise ConfigError([f"model.decoder: {name} lets the branches of a sample see each other; {change}"])


def _equal_but_for_rounding(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if actual.dtype in (torch.float32, torch.float64):
        return nearly_equal(actual, expected)
    return bool((actual - expected).float().norm() <= _ROUNDING * expected.float().norm())


def _hidden(
    model: CausalDecoder, tokens: int, *, ids: tuple[tuple[int, ...], ...] = _IDS, **arguments: Any
) -> torch.Tensor:
    """The last hidden states [1, tokens, H] of the first tokens, in evaluation."""
    embeddings = model.get_input_embeddings()
    device = embeddings.weight.device
    if (layout := arguments.get("attention_layout")) is not None:
        arguments["attention_layout"] = layout.to(device)
    was_training = model.training
    model.eval()
    try:
        hidden: torch.Tensor = model.base_model(
            inputs_embeds=embeddings(torch.tensor(ids, device=device)[:, :tokens]),
            position_ids=torch.tensor(_POSITIONS, device=device)[:, :tokens],
            use_cache=False,
            **arguments,
        ).last_hidden_state
    finally:
        model.train(was_training)
    return hidden
