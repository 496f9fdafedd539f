"""Training with a few of the architectures that tools/sweep_decoders.py compares with an oracle."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

from tests.support import model_batches
from tools.decoders.compare import RUNS, compare
from tools.decoders.tiny import tiny_config

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


@pytest.mark.parametrize(
    ("model_type", "title"),
    [
        ("llama", "causal, packed"),
        ("llama", "MMCA, packed"),
        ("gemma2", "causal, packed"),
        ("deepseek_v3", "MMCA, packed"),
        ("qwen3_moe", "MMCA, packed"),
        ("qwen3_next", "causal, `packed: false`"),
        ("lfm2", "causal, `packed: false`"),
        ("falcon_h1", "causal, `packed: false`"),
        ("gpt_oss", "causal, `packed: false`"),
        ("qwen3", "causal, branches"),
        ("bloom", "causal, `packed: false`"),
    ],
)
def test_losses_and_gradients_of_three_steps_are_the_oracles(model_type: str, title: str) -> None:
    outcome = compare(tiny_config(model_type), RUNS[title])
    assert outcome.verdict == "exact", outcome


@pytest.mark.parametrize("model_type", ["qwen3_next", "gpt_oss"])
def test_a_decoder_that_mixes_samples_is_refused_with_packed_sequences_and_the_setting_that_works(
    model_type: str,
) -> None:
    outcome = compare(tiny_config(model_type), RUNS["causal, packed"])
    assert outcome.verdict == "refused"
    assert "lets samples that share a sequence see each other; set batch.packed: false" in outcome.text
