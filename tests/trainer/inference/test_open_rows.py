"""Which rows a decoder gets: shared ones where they are right, with images apart where these can be placed."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")

from tests.support import model_batches
from tests.support.model_batches import CONFIG, IMAGE_IDS, facts, random_images
from tests.support.tiny_models import GEOMETRY, Attention, Loaded
from tests.support.tried_rows import Tried
from tools.decoders.tiny import tiny_config
from trainer.config.model import DecoderConfig
from trainer.inference.cached_decoder import Prompt
from trainer.inference.generate import position_limit
from trainer.inference.open_rows import plan_rows
from trainer.inference.separate_rows import SeparateRows
from trainer.inference.shared_rows import SharedRows
from trainer.inference.state_cache import StateCache
from trainer.model.build_model import build_model

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

_NONE: Any = None
"""For what the tests of decoders do not use"""
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0}
DECODERS: dict[str, tuple[dict[str, Any], Attention, str]] = {
    "partial rotary": ({"model_type": "gpt_neox"}, "mmca", "images"),
    "partial rotary, parallel": ({"model_type": "phi"}, "mmca", "images"),
    "interleaved rotary": ({"model_type": "cohere"}, "mmca", "images"),
    "yarn": ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "mmca", "images"),
    "angles by length": ({"model_type": "llama", "rope_parameters": DYNAMIC}, "mmca", "rows"),
    "absolute positions": ({"model_type": "gpt2"}, "mmca", "rows"),
    "absolute positions, causal": ({"model_type": "gpt2"}, "causal", "rows"),
    "positions by distance": ({"model_type": "bloom"}, "causal", "separate"),
    "window": ({"model_type": "mistral", "sliding_window": 5}, "causal", "separate"),
    "recurrent": ({"model_type": "mamba"}, "causal", "separate"),
    "recurrent and attention": ({"model_type": "qwen3_next"}, "causal", "separate"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_get_what_they_can_and_a_note_says_what_they_cannot(name: str) -> None:
    options, attention, expected = DECODERS[name]
    config = {**tiny_config(options["model_type"]), **options}
    decoder = DecoderConfig(config=config, attn_implementation="eager")
    model = build_model(replace(CONFIG, decoder=decoder, attention=attention), facts()).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.double()
    plan = plan_rows(model, torch.device("cpu"), position_limit(model))
    rows, notes = plan.open(2, StateCache(1 << 30)), plan.notes
    if expected == "separate":
        assert isinstance(rows, SeparateRows)
        assert "one after the other" in notes[0]
    else:
        assert isinstance(rows, SharedRows)
        assert (plan.images is not None) == (expected == "images")
        check = Tried(Loaded(model=model, chat_tokenizer=_NONE, geometry=GEOMETRY), rows)
        for ids, slots in (([5, *IMAGE_IDS, 6, 7], (1,)), ([8, 9, 10, *IMAGE_IDS, 11], (3,))):
            check.join(Prompt(ids=np.array(ids), images=random_images(1), slots=slots, end_id=0))
        check.step([12, 13])
        check.leave(0)
        check.step([14])
        reads_again = expected == "rows" and attention == "mmca"
        assert ["images are read again" in note for note in notes] == [True] * reads_again
