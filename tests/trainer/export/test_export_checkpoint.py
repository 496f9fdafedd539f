"""Exports of a run's checkpoints: adapters merged, all else as it was trained, and what is wrong is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch
from click.testing import CliRunner

from dst.errors import ConfigError
from tests.support import exports, model_batches, train_runs
from tests.support.exports import CLIP, OPEN_CLIP
from tests.support.sealed_records import edit_record
from trainer.cli import cli
from trainer.errors import TrainError
from trainer.export.export import export

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)


QWEN = {"preset": "tiny_qwen2"}


@pytest.mark.parametrize(
    "encoder", [{"kind": "hf", "config": CLIP}, {"kind": "open_clip", "config": OPEN_CLIP}], ids=["hf", "open_clip"]
)
def test_a_checkpoint_of_two_ranks_is_exported_with_its_adapters_merged(
    encoder: dict[str, Any], build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    targets = "all-linear" if encoder["kind"] == "hf" else ["attn", "c_fc"]
    lora = {"decoder": {"rank": 2, "target_modules": ["q_proj", "down_proj"]}, "encoder": {"target_modules": targets}}
    config = exports.config_of(build, encoder=encoder, decoder=QWEN, learning_rates={"projector": 1e-3}, lora=lora)
    model = exports.make_model(config, build)
    exports.write_checkpoint(tmp_path / "run", model, config, build)

    export(tmp_path / "run", tmp_path / "out")

    assert not any("lora" in name for name in exports.names_in(tmp_path / "out"))
    exports.check_is_llava(model, build, tmp_path / "out")


def test_base_weights_that_no_adapter_touches_do_not_drift(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build, lora={"decoder": {"target_modules": ["q_proj"]}})
    model = exports.make_model(config, build)
    decoder: Any = model.decoder
    base = dict(decoder.named_parameters())
    exports.write_checkpoint(tmp_path / "run", model, config, build)

    export(tmp_path / "run", tmp_path / "out")

    stored = exports.tensors_in(tmp_path / "out")
    kept = [name for name in base if "lora_" not in name and "q_proj" not in name]
    assert kept
    for name in kept:
        assert torch.equal(stored[f"language_model.{name}"], base[name])
    adapter = decoder.model.layers[0].self_attn.q_proj
    merged = adapter.base_layer.weight + adapter.get_delta_weight("default")
    assert torch.equal(stored["language_model.model.layers.0.self_attn.q_proj.weight"], merged)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_base_weights_that_were_exchanged_are_reported(part: str, build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    made = exports.make_model(exports.config_of(build), build)
    bases: dict[str, Any] = {"decoder": made.decoder, "encoder": made.encoder.tower.model}
    for name, base in bases.items():
        base.save_pretrained(tmp_path / name)
    parts: dict[str, Any] = {
        "encoder": {"kind": "hf", "name": str(tmp_path / "encoder"), "layer": -1},
        "decoder": {"name": str(tmp_path / "decoder")},
    }
    config = exports.config_of(build, lora={"decoder": {"rank": 2}}, **parts)
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    export(tmp_path / "run", tmp_path / "out")

    with torch.no_grad():
        next(each for name, each in bases[part].named_parameters() if "layers.0" in name and each.ndim == 2).mul_(1.1)
    bases[part].save_pretrained(tmp_path / part)

    with pytest.raises(
        ConfigError, match=rf"model\.{part}: .*layers\.0.* is frozen and has other weights now than when"
    ):
        export(tmp_path / "run", tmp_path / "again")


def test_a_checkpoint_gives_the_same_bytes_each_time(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    lora = {"decoder": {"rank": 2}, "encoder": {"rank": 2, "target_modules": ["q_proj"]}}
    config = exports.config_of(build, learning_rates={"projector": 1e-3}, lora=lora)
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    for number in (1, 2):
        export(tmp_path / "run", tmp_path / f"{number}/model")
    names = sorted(path.name for path in (tmp_path / "1/model").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "2/model").iterdir())
    for name in names:
        assert (tmp_path / "1/model" / name).read_bytes() == (tmp_path / "2/model" / name).read_bytes(), name


@pytest.fixture
def run(build_of: exports.MakeBuild, tmp_path: Path) -> Path:
    """A run's folder with a checkpoint."""
    build = build_of()
    config = exports.config_of(build)
    exports.write_checkpoint(tmp_path / "run", exports.make_model(config, build), config, build)
    return tmp_path / "run"


def test_the_command_exports_a_run_or_one_checkpoint(run: Path, tmp_path: Path) -> None:
    for number, location in enumerate((run, run / "checkpoints/step-00000003")):
        out = tmp_path / f"out-{number}"
        done = CliRunner().invoke(cli, ["export", "--model", str(location), "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert "a LLaVA folder" in done.stdout
        assert exports.llava(out).dtype == torch.float32


def test_the_best_checkpoint_is_exported_by_that_name(run: Path, build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    exports.write_checkpoint(run, exports.make_model(config, build), config, build, step=5)
    best = run / "checkpoints/best"
    for content in ("", "step-00000003"):
        best.write_text(content)
        with pytest.raises(ConfigError, match=r"no checkpoint there; expected .*checkpoints/best"):
            export(best, tmp_path / "out")
    best.write_text(json.dumps({"checkpoint": "step-00000003", "loss": 1.0}))
    for location, step in ((best, 3), (run, 5)):
        export(location, tmp_path / f"out-{step}")
        assert json.loads((tmp_path / f"out-{step}/dsvl.json").read_text())["step"] == step


def test_a_moved_build_is_found_by_its_option(run: Path, tmp_path: Path, build_of: exports.MakeBuild) -> None:
    record = run / "checkpoints/step-00000003/checkpoint.json"
    edit_record(record, lambda content: content["config"].update(build=str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match=r"gone.*--build"):
        export(run, tmp_path / "out")
    export(run, tmp_path / "out", build=build_of().store.location)
    with pytest.raises(ConfigError, match="its manifest is"):
        export(run, tmp_path / "other", build=build_of(image_tokens=5).store.location)


def test_a_checkpoint_that_is_missing_newer_or_damaged_is_reported(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint there"):
        export(tmp_path, tmp_path / "out")
    folder = run / "checkpoints/step-00000003"
    shard = folder / "rank-00001-000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(TrainError, match=r"rank-00001-000\.safetensors: has .* bytes, expected"):
        export(run, tmp_path / "out")
    shard.unlink()
    with pytest.raises(TrainError, match="rank-00001-000"):
        export(run, tmp_path / "out")
    record = folder / "checkpoint.json"
    edit_record(record, lambda content: content.update(version=99))
    with pytest.raises(ConfigError, match=r"newer.*update dsvl"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_of_zero_3_on_two_ranks_is_exported_with_only_trained_weights_moved(tmp_path: Path) -> None:
    build = train_runs.compiled(tmp_path / "data")
    config = train_runs.config_file(
        tmp_path / "run",
        build,
        model={"attention": "causal", "encoder": {"kind": "hf", "config": CLIP}, "projector": {"kind": "mlp"}},
        learning_rates={"embeddings": None, "decoder": None},
        lora={"decoder": {"rank": 4}, "encoder": {"rank": 2}},
        zero={"stage": 3, "param_persistence_threshold": 0},
        precision="bf16",
        batch={"global_batch_size": 8, "micro_batch_size": 2},  # so that images are surely among them
        schedule={"steps": 2},
        checkpoints={"every": 1},
    )
    train_runs.train(config, ranks=2)

    before = export(tmp_path / "run/out/checkpoints/step-00000001", tmp_path / "before", precision="fp32")
    after = export(tmp_path / "run/out", tmp_path / "after", precision="fp32")

    assert before.form == after.form == "llava"
    first, last = exports.tensors_in(before.folder), exports.tensors_in(after.folder)
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert any("q_proj" in name and "language" in name for name in moved)
    assert any("q_proj" in name and "vision" in name for name in moved)
    assert any("multi_modal_projector" in name for name in moved)
    assert not any("norm" in name or "embed" in name for name in moved)
    exports.llava(after.folder)
