"""Training with a few of the architectures that tools/sweep_decoders.py compares with an oracle."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

from tests.support import model_batches
from tools.decoders.compare import Attention, compare
from tools.decoders.tiny import tiny_config

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


@pytest.mark.parametrize(
    ("model_type", "attention", "packed"),
    [
        ("llama", "causal", True),
        ("llama", "mmca", True),
        ("gemma2", "causal", True),
        ("deepseek_v3", "mmca", True),
        ("qwen3_moe", "mmca", True),
        ("qwen3_next", "causal", False),
        ("lfm2", "causal", False),
        ("falcon_h1", "causal", False),
        ("gpt_oss", "causal", False),
        ("bloom", "causal", False),
    ],
)
def test_losses_and_gradients_of_three_steps_are_the_oracles(
    model_type: str, attention: Attention, packed: bool
) -> None:
    outcome = compare(tiny_config(model_type), attention, packed=packed)
    assert outcome.verdict == "exact", outcome


@pytest.mark.parametrize("model_type", ["qwen3_next", "gpt_oss"])
def test_a_decoder_that_mixes_samples_is_refused_with_packed_sequences_and_the_setting_that_works(
    model_type: str,
) -> None:
    outcome = compare(tiny_config(model_type), "causal", packed=True)
    assert outcome.verdict == "refused"
    assert "lets samples that share a sequence see each other; set batch.packed: false" in outcome.text
