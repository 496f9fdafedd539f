"""The files of an exported folder: weights, tokenizer, model card; whole or not there."""

# ruff: noqa: E402 - torch and transformers may be missing

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from dst.errors import ConfigError
from shards import ShardError
from tests.support import exports, model_batches
from trainer.errors import TrainError
from trainer.export import export as export_module
from trainer.export.export import export_model
from trainer.model_io.safetensors_files import WeightFiles, write_weights

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build_of = pytest.fixture(scope="module")(exports.builds)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_stored_in_the_precision_asked_for(
    precision: str, dtype: torch.dtype, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    config = exports.config_of(build)
    model = exports.make_model(config, build)

    export_model(model, config, build, tmp_path / "out", step=1, precision=precision)

    assert {tensor.dtype for tensor in exports.tensors_in(tmp_path / "out").values()} == {dtype}
    assert exports.llava(tmp_path / "out").dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}, (
        "the model itself must stay as it was"
    )


def test_several_files_of_weights_have_an_index(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    model = exports.make_model(config, build)

    export_model(model, config, build, tmp_path / "out", step=1, shard_bytes=100_000)

    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert {name: file for file in files for name in exports.names_in(tmp_path / "out", file)} == index["weight_map"]
    exports.check_is_llava(model, build, tmp_path / "out")


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    max_bytes=st.integers(1, 200),
    half=st.booleans(),
)
def test_weights_come_back_however_they_are_cut_into_files(sizes: list[int], max_bytes: int, half: bool) -> None:
    tensors = {f"layer.{number}": torch.randn(size) for number, size in enumerate(sizes)}
    if half:
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = write_weights(Path(folder), tensors.items(), max_bytes=max_bytes)
        assert sorted(files) == sorted(os.listdir(folder))
        actual = WeightFiles(Path(folder))
        for name, tensor in tensors.items():
            assert torch.equal(actual.read(name, shape=tensor.shape), tensor)
        for file in files:
            if file.endswith(".safetensors"):
                held = [tensors[name].nbytes for name in exports.names_in(Path(folder), file)]
                assert sum(held) <= max_bytes or len([size for size in held if size]) == 1


def test_tokenizer_files_are_those_of_the_build_to_the_byte(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)

    files = sorted(build.tokenizer_folder().iterdir())
    assert {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"} <= {file.name for file in files}
    for file in files:
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("attention", ["causal", "mmca"])
def test_the_exported_tokenizer_writes_the_templates_text(
    attention: str, build_of: exports.MakeBuild, tmp_path: Path
) -> None:
    build = build_of()
    config = exports.config_of(build, attention=attention)
    model = exports.make_model(config, build)
    export_model(model, config, build, tmp_path / "out", step=1)
    chat = exports.chat_of(build)
    rounds = [*exports.QUESTION, {"role": "assistant", "content": "The first."}, {"role": "user", "content": "Why?"}]

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")

    expected = chat.render(rounds, add_generation_prompt=True).text
    assert tokenizer.apply_chat_template(rounds, add_generation_prompt=True, tokenize=False) == expected
    assert processor.apply_chat_template(rounds, add_generation_prompt=True) == expected
    inputs = processor(
        text=chat.render(exports.QUESTION, add_generation_prompt=True).text,
        images=exports.sample_images(),
        return_tensors="pt",
    )
    assert torch.equal(inputs["input_ids"], exports.expanded(model, chat))


def test_answers_end_where_training_ended_them(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)

    chat = exports.chat_of(build)
    encoded = chat.encode([*exports.QUESTION, {"role": "assistant", "content": "The first."}])
    actual = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert encoded.ids[encoded.trained[0][1] - 1] in actual.eos_token_id
    assert chat.tokenizer.decode([actual.pad_token_id]) == chat.tokenizer.eos_token


def test_the_model_card_names_data_and_training(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    export_model(exports.make_model(config, build), config, build, tmp_path / "my-model", step=1234)

    card = (tmp_path / "my-model/README.md").read_text()
    tokens = build.manifest.datasets["mine"].tokens
    assert build.manifest.hash in card
    assert f"| mine | chat | 6 | 12 | {tokens:,} |" in card
    assert "# my-model" in card
    assert 'padding_side = "left"' in card
    assert "1,234 optimizer steps" in card
    assert "preset: tiny_llama" in card
    assert "dataset: mine: (its licence)" in card
    assert build.store.location not in card


def test_a_folder_that_is_not_empty_is_left_alone(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    build = build_of()
    config = exports.config_of(build)
    with pytest.raises(ConfigError, match="exists already and is not an empty folder"):
        export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_who_may_read_a_new_file_may_read_all_of_an_export(build_of: exports.MakeBuild, tmp_path: Path) -> None:
    build = build_of()
    config = exports.config_of(build)
    before = os.umask(0o027)
    try:
        export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=lambda error: type(error).__name__,
)
def test_an_export_that_fails_midway_leaves_nothing(
    error: Exception, build_of: exports.MakeBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> str:
        raise error

    monkeypatch.setattr(export_module, "model_card", full)
    build = build_of()
    config = exports.config_of(build)
    (tmp_path / "out").mkdir()
    with pytest.raises(TrainError, match="No space left on device"):
        export_model(exports.make_model(config, build), config, build, tmp_path / "out", step=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())


def test_an_edited_tokenizer_of_the_build_is_not_exported(tmp_path: Path) -> None:
    build = exports.make_build(tmp_path)
    config = exports.config_of(build)
    model = exports.make_model(config, build)
    template = Path(build.store.location) / "tokenizer/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(ShardError, match="edited"):
        export_model(model, config, build, tmp_path / "out", step=1)
    assert not (tmp_path / "out").exists()
