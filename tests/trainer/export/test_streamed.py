"""An export that reads and merges the decoder tensor by tensor has the bytes of one with all weights in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from safetensors.torch import save_file

from dst.errors import ConfigError
from shards import Build
from tests.support import exports, llava_folders, model_batches
from tests.support.sealed_records import edit_record
from trainer.checkpoint.init_from import start_facts, with_start
from trainer.config.run import config_from
from trainer.export.export import export, export_model
from trainer.export.streamed import streamed
from trainer.model.decoder import PRESETS
from trainer.model_io.safetensors_files import write_weights
from trainer.training.restore import open_run, restore

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)

LORA: dict[str, Any] = {"decoder": {"rank": 2}, "encoder": {"rank": 2}}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return exports.make_build(tmp_path_factory.mktemp("build"))


def save_decoder(folder: Path, config: dict[str, Any], **options: Any) -> None:
    """A decoder's folder as transformers writes it, in bfloat16, with fewer rows than the build has tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    hf_config = AutoConfig.for_model(**{"vocab_size": 1000, **config})
    model: Any = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, **options)


def run_of(folder: Path, build: Build, parts: dict[str, Any], **settings: Any) -> None:
    """A run's folder with a checkpoint of a model whose trained weights were moved."""
    if "init_from" in parts:
        tree = {"build": build.store.location, "out": "out", "model": parts, **settings}
        config = config_from(with_start({"precision": "fp32", **tree}, "train.yaml"), "train.yaml")
    else:
        config = exports.config_of(build, **parts, **settings)
    path = exports.write_checkpoint(folder, exports.make_model(config, build), config, build) / "checkpoint.json"
    facts = {"init_from": start_facts(parts.get("init_from"))}
    edit_record(path, lambda content: content.update(facts))


def check_same_files(run: Path, tmp_path: Path, **options: Any) -> None:
    """`run` is exported tensor by tensor; the files are those of an export of the whole model."""
    opened = open_run(run)
    assert streamed(opened).decoder is not None
    precision = options.get("precision", opened.config.precision)
    export(run, tmp_path / "streamed/model", **options)
    shard_bytes = options.get("shard_bytes", 1 << 30)
    step, stages = opened.checkpoint.step, opened.stages
    export_model(
        restore(opened),
        opened.config,
        opened.build,
        tmp_path / "whole/model",
        step=step,
        earlier=stages,
        precision=precision,
        shard_bytes=shard_bytes,
    )
    names = sorted(path.name for path in (tmp_path / "whole/model").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "streamed/model").iterdir())
    for name in names:
        assert (tmp_path / "whole/model" / name).read_bytes() == (tmp_path / "streamed/model" / name).read_bytes(), name


@pytest.mark.parametrize("attention", ["causal", "mmca"])
@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("tiny_llama", {"lora": LORA, "precision": "bf16"}),
        ("tiny_qwen2", {"lora": LORA, "precision": "fp32"}),
        ("tiny_qwen3", {"lora": {"decoder": {"rank": 2, "dora": True}}, "precision": "bf16"}),
        ("tiny_llama", {"learning_rates": {"decoder": 1e-3}, "lora": LORA, "precision": "fp16"}),
        ("tiny_qwen2", {"learning_rates": {"embeddings": 1e-3}, "precision": "bf16"}),
        ("tiny_llama", {"lora": {"decoder": {"rank": 2, "modules_to_save": ["lm_head"]}}, "precision": "bf16"}),
    ],
)
def test_a_run_with_a_decoder_of_transformers_has_the_same_files(
    preset: str, settings: dict[str, Any], attention: str, build: Build, tmp_path: Path
) -> None:
    save_decoder(tmp_path / "decoder", PRESETS[preset])
    run_of(
        tmp_path / "run", build, {"decoder": {"name": str(tmp_path / "decoder")}, "attention": attention}, **settings
    )
    check_same_files(tmp_path / "run", tmp_path)


@pytest.mark.parametrize("form", ["llava", "internvl", "dsvl", "published"])
def test_a_run_that_began_with_a_whole_model_has_the_same_files(form: str, build: Build, tmp_path: Path) -> None:
    start = tmp_path / "start"
    if form == "published":
        llava_folders.write_llava(start, build, max_shard_size="20KB")
    else:
        projector = {"llava": "mlp", "internvl": "pixel_shuffle", "dsvl": "linear"}[form]
        parts = {"encoder": {"kind": "hf", "config": exports.DINOV2}} if form == "internvl" else {}
        config = exports.config_of(build, projector={"kind": projector}, **parts)
        done = export_model(exports.make_model(config, build), config, build, start, step=5)
        assert done.form == form
    run_of(tmp_path / "run", build, {"init_from": str(start)}, lora=LORA)
    check_same_files(tmp_path / "run", tmp_path)


def test_several_files_in_another_precision_are_the_same(build: Build, tmp_path: Path) -> None:
    save_decoder(tmp_path / "decoder", PRESETS["tiny_llama"], max_shard_size="100KB")
    run_of(tmp_path / "run", build, {"decoder": {"name": str(tmp_path / "decoder")}}, lora=LORA)
    check_same_files(tmp_path / "run", tmp_path, shard_bytes=100_000, precision="fp16")


def test_a_decoder_whose_names_transformers_changes_is_loaded_as_a_whole(build: Build, tmp_path: Path) -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": None}
    save_decoder(tmp_path / "decoder", {**PRESETS["tiny_llama"], "model_type": "mixtral", **sizes})
    run_of(tmp_path / "run", build, {"decoder": {"name": str(tmp_path / "decoder")}}, lora={"decoder": {"rank": 2}})
    assert streamed(open_run(tmp_path / "run")).decoder is None
    assert export(tmp_path / "run", tmp_path / "out").form == "llava"


def test_base_weights_that_were_exchanged_are_reported_and_nothing_is_written(build: Build, tmp_path: Path) -> None:
    save_decoder(tmp_path / "decoder", PRESETS["tiny_llama"])
    run_of(tmp_path / "run", build, {"decoder": {"name": str(tmp_path / "decoder")}}, lora=LORA)
    tensors = exports.tensors_in(tmp_path / "decoder")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.1
    save_file(tensors, tmp_path / "decoder/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"up_proj\.base_layer\.weight is frozen and has other weights now than when"):
        export(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_have_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.randn(3, 5, generator=random),
        "a": torch.randn(7, generator=random).bfloat16(),
        "c": torch.arange(6).reshape(2, 3).T,
        "é": torch.zeros(0, 4),
        "d": torch.tensor(2.5, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
    }
    write_weights(tmp_path, tensors.items(), max_bytes=1 << 20)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, tmp_path / "expected", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()


def test_tensors_are_made_one_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def value(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(int(tensor.shape[0]))
        return torch.full(tensor.shape, float(tensor.shape[0]))

    lazy = {f"{size}": torch.empty(size, device="meta") for size in (3, 1, 2)}
    write_weights(tmp_path, lazy.items(), max_bytes=1 << 20, dtype=torch.float16, value=value)
    assert alive == [1, 2, 3]
    stored = exports.tensors_in(tmp_path)
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {
        name: [float(name)] * int(name) for name in ("1", "2", "3")
    }
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
