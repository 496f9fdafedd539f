"""QWen-VL's tower computes what its checkpoint was trained as, and is taken out of it whole or not at all."""

from __future__ import annotations

import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from dst.errors import ConfigError
from trainer.config.model import EncoderConfig
from trainer.model.encoders.qwen_vl import QwenVisual, QwenVlSizes, at_grid, sine_table
from trainer.model.encoders.registry import build_encoder

SCRIPT = ROOT / "tools" / "extract_qwen_vl.py"
TOOL = runpy.run_path(str(SCRIPT))
PREFIX, ExtractError, extract = TOOL["PREFIX"], TOOL["ExtractError"], TOOL["extract"]
VISUAL: dict[str, Any] = {
    "image_size": 56,
    "patch_size": 14,
    "width": 16,
    "layers": 2,
    "heads": 2,
    "mlp_ratio": 1.5,
    "output_dim": 256,
    "n_queries": 4,
}
SIZES = QwenVlSizes(**VISUAL, positions=4)


def tower(seed: int = 0) -> QwenVisual:
    torch.manual_seed(seed)
    module = QwenVisual(SIZES).eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))


def by_hand(weights: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    """One image through the tower, head by head and matrix by matrix; [3, 56, 56] -> [4, 256]."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return (query @ key.T / math.sqrt(query.shape[1])).softmax(-1) @ value

    def larger(table: torch.Tensor) -> torch.Tensor:
        grid = table.T.reshape(1, -1, 2, 2)
        return functional.interpolate(grid, (4, 4), mode="bicubic").reshape(table.shape[1], 16).T

    patches = [image[:, r : r + 14, c : c + 14].reshape(-1) for r in range(0, 56, 14) for c in range(0, 56, 14)]
    x = torch.stack(patches) @ weights["conv1.weight"].reshape(16, -1).T + larger(weights["positional_embedding"])
    x = norm(x, "ln_pre")
    for layer in ("transformer.resblocks.0", "transformer.resblocks.1"):
        mixed = linear(norm(x, f"{layer}.ln_1"), f"{layer}.attn.in_proj")
        heads = []
        for head in range(2):
            own = mixed[:, 24 * head : 24 * (head + 1)]
            heads.append(attend(own[:, :8], own[:, 8:16], own[:, 16:]))
        x = x + linear(torch.cat(heads, 1), f"{layer}.attn.out_proj")
        inner = functional.gelu(linear(norm(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"))
        x = x + linear(inner, f"{layer}.mlp.c_proj")

    pool = "attn_pool"
    value = norm(x @ weights[f"{pool}.kv_proj.weight"].T, f"{pool}.ln_kv")
    key = value + larger(weights[f"{pool}.pos_embed"])
    query = norm(weights[f"{pool}.query"], f"{pool}.ln_q") + weights[f"{pool}.pos_embed"]
    projected = [
        each @ part.T + bias
        for each, part, bias in zip(
            (query, key, value),
            weights[f"{pool}.attn.in_proj_weight"].chunk(3),
            weights[f"{pool}.attn.in_proj_bias"].chunk(3),
            strict=True,
        )
    ]
    actual = [attend(*(each[:, start : start + 128] for each in projected)) for start in (0, 128)]
    return norm(linear(torch.cat(actual, 1), f"{pool}.attn.out_proj"), "ln_post") @ weights["proj"]


def test_the_tower_equals_its_arithmetic_written_out() -> None:
    module = tower().double()
    image = pixels().double()
    expected = torch.stack([by_hand(module.state_dict(), each) for each in image])
    # Position tables are interpolated in float32, whatever the type of the weights.
    torch.testing.assert_close(module(image), expected, rtol=1e-4, atol=1e-6)


def test_places_of_queries_are_sines_of_column_and_row() -> None:
    table = sine_table(3, 8)
    assert table.shape == (9, 8)
    for index in range(9):
        row, column = divmod(index, 3)
        expected = [f(at * w) for at in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
        assert table[index].tolist() == pytest.approx(expected)


def test_a_table_of_the_right_size_is_taken_as_it_is() -> None:
    table = torch.randn(16, 3)
    assert at_grid(table, 16) is table
    assert at_grid(table, 64).shape == (64, 3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder as QWen-VL's: three .bin shards with an index, language weights among those of the tower."""
    folder = tmp_path / "Qwen-VL"
    folder.mkdir()
    weights = {f"{PREFIX}{name}": value for name, value in tower().state_dict().items()}
    weights |= {f"transformer.h.{number}.attn.c_attn.weight": torch.randn(4, 4) for number in range(3)}
    names = sorted(weights)
    places: dict[str, str] = {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05d}-of-00003.bin"
        torch.save({name: weights[name] for name in names[number::3]}, folder / file)
        places |= dict.fromkeys(names[number::3], file)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": {**VISUAL, "image_start_id": 9}}))
    return folder


@pytest.mark.parametrize("form", ["shards.bin", "shards.safetensors", "whole.bin", "whole.safetensors"])
def test_an_extracted_tower_is_the_one_in_the_checkpoint(form: str, checkpoint: Path, tmp_path: Path) -> None:
    rewrite(checkpoint, form)
    out = tmp_path / "towers" / "visual.safetensors"
    extract(checkpoint, out)
    expected = tower()
    assert load_file(out).keys() == expected.state_dict().keys()
    encoder = build_encoder(EncoderConfig(kind="qwen_vl", weights=str(out))).eval()
    assert (encoder.image_size, encoder.num_tokens, encoder.width) == (56, 4, 256)
    assert torch.equal(encoder(pixels()), expected(pixels()))
    assert sorted(path.name for path in out.parent.iterdir()) == ["visual.json", "visual.safetensors"]


def rewrite(folder: Path, form: str) -> None:
    """The checkpoint in another of the forms that it may have."""
    shards = sorted(folder.glob("*.bin"))
    index = folder / "pytorch_model.bin.index.json"
    if form == "shards.safetensors":
        for shard in shards:
            save_file(torch.load(shard), shard.with_suffix(".safetensors"))
        index.rename(folder / "model.safetensors.index.json").write_text(
            index_text(folder).replace(".bin", ".safetensors")
        )
    elif form.startswith("whole"):
        weights = {name: value for shard in shards for name, value in torch.load(shard).items()}
        index.unlink()
        if form == "whole.bin":
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors")
    if form != "shards.bin":
        for shard in shards:
            shard.unlink()


def index_text(folder: Path) -> str:
    return next(folder.glob("*.index.json")).read_text()


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(ExtractError) as caught:
        extract(folder, out)
    assert not out.exists()
    return str(caught.value)


def test_what_is_not_a_checkpoint_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "visual.safetensors"
    assert "no such folder" in refused(tmp_path / "nowhere", out)
    assert "holds none of" in refused(tmp_path, out)
    assert ".safetensors" in refused(checkpoint, tmp_path / "visual.bin")
    (checkpoint / "config.json").write_text("{}")
    assert "no sizes of the tower" in refused(checkpoint, out)


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "pytorch_model-00002-of-00003.bin").unlink()
    assert "pytorch_model-00002-of-00003.bin" in refused(checkpoint, tmp_path / "visual.safetensors")


def test_a_damaged_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    shard = checkpoint / "pytorch_model-00003-of-00003.bin"
    shard.write_bytes(shard.read_bytes()[:200])
    message = refused(checkpoint, tmp_path / "visual.safetensors")
    assert "pytorch_model-00003-of-00003.bin" in message
    shard.write_bytes(b"")
    assert "pytorch_model-00003-of-00003.bin" in refused(checkpoint, tmp_path / "visual.safetensors")


def test_a_shard_that_lacks_a_weight_is_named(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({}, checkpoint / "pytorch_model-00001-of-00003.bin")
    assert "which the index says it holds" in refused(checkpoint, tmp_path / "visual.safetensors")


def test_a_shard_that_holds_code_is_not_opened(checkpoint: Path, tmp_path: Path) -> None:
    shard = checkpoint / "pytorch_model-00001-of-00003.bin"
    torch.save({"transformer.visual.proj": Path}, shard)
    assert "holds more than tensors" in refused(checkpoint, tmp_path / "visual.safetensors")


def test_another_model_and_half_a_tower_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "visual.safetensors"
    rewrite(checkpoint, "whole.bin")
    weights = torch.load(checkpoint / "pytorch_model.bin")
    torch.save({k: v for k, v in weights.items() if "resblocks.1" not in k}, checkpoint / "pytorch_model.bin")
    assert "lacks layer 1" in refused(checkpoint, out)
    torch.save({k: v for k, v in weights.items() if "visual" not in k}, checkpoint / "pytorch_model.bin")
    assert "expected a checkpoint of QWen-VL" in refused(checkpoint, out)


def test_weights_of_another_tower_say_what_does_not_fit(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "visual.safetensors"
    tensors = extract(checkpoint, out)
    config = EncoderConfig(kind="qwen_vl", weights=str(out))
    del tensors["proj"]
    save_file({**tensors, "ln_post.bias": torch.zeros(3), "more": torch.zeros(1)}, out)
    with pytest.raises(ConfigError) as caught:
        build_encoder(config)
    for part in ("lacks proj", "has more, which", r"ln_post.bias is [3], expected [256]", "extract_qwen_vl"):
        assert part in str(caught.value)
    out.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="is not a safetensors file"):
        build_encoder(config)
    out.unlink()
    with pytest.raises(ConfigError, match="no file"):
        build_encoder(config)


def test_sizes_that_do_not_fit_are_all_reported() -> None:
    config = EncoderConfig(kind="qwen_vl", config={**VISUAL, "heads": 3, "n_queries": 5, "image_size": 57})
    with pytest.raises(ConfigError) as caught:
        build_encoder(config)
    assert [problem.split(":")[0].rsplit(".", 1)[1] for problem in caught.value.problems] == [
        "patch_size",
        "heads",
        "n_queries",
    ]


@pytest.mark.slow
def test_the_command_prints_what_it_wrote_and_what_failed(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "visual.safetensors"

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(SCRIPT), str(folder), str(out)], capture_output=True, text=True)

    done = run(checkpoint)
    assert done.returncode == 0
    assert f"{out}: " in done.stdout
    failed = run(tmp_path / "nowhere")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "no such folder" in failed.stderr
    assert "Traceback" not in failed.stderr
