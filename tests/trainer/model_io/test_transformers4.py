"""transformers 4, which inference servers still run, reads exported standard folders: same logits, ids and pixels."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("open_clip")

import torch
from safetensors.torch import load_file, save_file

from shards import Build
from tests.support import exports, model_batches, transformers4
from tests.support.paths import ROOT
from trainer.export.export import export_model
from trainer.model.vision_chat import VisionChatModel

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)

READ = (
    *("architectures", "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"),
    *("rotary_emb_base", "rotary_pct"),
)
"""Keys of text_config that transformers 4 reads, and transformers 5 does not write by itself"""


def exported(name: str, build_of: exports.MakeBuild, folder: Path) -> tuple[VisionChatModel, Build]:
    """Export a case into the folder."""
    parts, image = transformers4.CASES[name]
    build = build_of(**image)
    config = exports.config_of(build, **parts, learning_rates=exports.ALL)
    model = exports.make_model(config, build)
    done = export_model(model, config, build, folder, step=1)
    assert not done.refusals
    return model, build


def written(folder: Path) -> dict[str, Any]:
    """What transformers 4 reads of an export: names of the weights, and keys."""
    config = json.loads((folder / "config.json").read_text())
    text = {key: config["text_config"][key] for key in READ if key in config["text_config"]}
    weights = sorted({re.sub(r"\.\d+\.", ".N.", name) for name in exports.names_in(folder)})
    return {"text_config": text, "torch_dtype": config["torch_dtype"], "weights": weights}


@pytest.mark.parametrize("name", transformers4.CASES)
def test_exports_have_the_names_and_keys_that_transformers_4_was_seen_to_read(
    name: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    """If this fails, run tools/check_transformers4.py, which compares logits and renews the file."""
    exported(name, build_of, tmp_path / "out")
    assert written(tmp_path / "out") == json.loads(transformers4.GOLDEN.read_text())[name]


@pytest.mark.parametrize("name", transformers4.CASES)
def test_the_older_keys_change_nothing_in_the_installed_release(
    name: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    model, _ = exported(name, build_of, tmp_path / "out")
    decoder: Any = model.decoder
    rope = transformers.AutoConfig.from_pretrained(tmp_path / "out").text_config.rope_parameters
    rope.pop("type", None)  # rope_type by its older name, which Phi-3 has as well
    assert rope == decoder.config.rope_parameters


@pytest.mark.slow
@pytest.mark.skipif(not transformers4.VENV.exists(), reason="needs the environment of tools/check_transformers4.py")
def test_transformers_4_gives_the_same_logits_ids_and_pixels(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    images, expected = exports.sample_images(), {}
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "question.json").write_text(json.dumps(exports.QUESTION))
    for name in transformers4.CASES:
        model, build = exported(name, build_of, tmp_path / name)
        ids = exports.expanded(model, exports.chat_of(build))
        pixels = exports.processed(tmp_path / name, images, backend="pil")["pixel_values"]
        save_file({"ids": ids, "pixels": pixels}, tmp_path / f"{name}.inputs.safetensors")
        logits = exports.logits_of(model, ids, exports.pixels_of(images, build))
        expected[name] = {"logits": logits, "ids": ids, "pixels": pixels}

    script = ROOT / "tests/support/transformers4_reader.py"
    command = [str(transformers4.VENV / "bin/python"), str(script), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr

    assert json.loads(done.stdout.splitlines()[-1]) == {name: [] for name in transformers4.CASES}
    for name, tensors in expected.items():
        actual = load_file(tmp_path / f"{name}.outputs.safetensors")
        assert torch.equal(actual["ids"], tensors["ids"]), name
        assert torch.equal(actual["pixels"], tensors["pixels"]), name
        assert (actual["logits"] - tensors["logits"]).abs().max() < 1e-4, name
    if "DSVL_RENEW_TRANSFORMERS4" in os.environ:
        seen = {name: written(tmp_path / name) for name in transformers4.CASES}
        transformers4.GOLDEN.write_text(json.dumps(seen, indent=1, sort_keys=True) + "\n")
