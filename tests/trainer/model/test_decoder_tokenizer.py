"""A pretrained decoder is only trained on ids of its own tokenizer, and a build may add tokens to that."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import dst
from dst import tokenizer_trial
from dst.errors import ConfigError
from tests.support import text_tokenizers, train_runs
from trainer.config.model import DecoderConfig
from trainer.model.decoder_tokenizer import check_tokenizer
from trainer.training.preflight import prepare


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """The tokenizer folder of a build: the example tokenizer and what a build adds to it."""
    folder = tmp_path / "build"
    dst.load_tokenizer(text_tokenizers.BYTE_FOLDER).save(folder, "{{ messages }}")
    return folder


def with_swapped_tokens(path: Path) -> list[str]:
    """Exchange two tokens of a tokenizer.json; returns them, the one of the lower id last."""
    definition = json.loads(path.read_text())
    vocabulary = definition["model"]["vocab"]
    first, second = sorted(vocabulary, key=lambda token: vocabulary[token])[300:302]
    vocabulary.update({first: vocabulary[second], second: vocabulary[first]})
    path.write_text(json.dumps(definition))
    return [first, second]


def decoder(folder: Path, source: Path) -> DecoderConfig:
    """As much of a decoder's folder as matters here."""
    folder.mkdir()
    shutil.copy(source / "tokenizer.json", folder)
    return DecoderConfig(name=str(folder))


@pytest.mark.parametrize("kind", sorted(text_tokenizers.KINDS))
def test_the_tokenizer_that_the_build_was_made_with_fits(kind: str, tokenizer_folders: Path, tmp_path: Path) -> None:
    source = text_tokenizers.make(kind, tokenizer_folders)
    dst.load_tokenizer(source, ["<new>"]).save(tmp_path / "build", "{{ messages }}")
    assert check_tokenizer(decoder(tmp_path / "decoder", source), tmp_path / "build") == []
    assert check_tokenizer(decoder(tmp_path / "again", tmp_path / "build"), tmp_path / "build") == []


def test_another_tokenizer_is_reported_by_its_first_token_that_differs(build: Path, tmp_path: Path) -> None:
    other = decoder(tmp_path / "decoder", text_tokenizers.BYTE_FOLDER)
    _, lower = with_swapped_tokens(tmp_path / "decoder/tokenizer.json")
    (problem,) = check_tokenizer(other, build)
    assert problem.startswith(f"model.decoder: the build's tokenizer is not that of {tmp_path / 'decoder'}: 2 of ")
    assert f"the first is {lower!r}, id 300, and the build has 301 for it" in problem
    assert "rebuild with tokenizer: " in problem


def test_random_decoders_and_those_without_a_file_have_nothing_to_compare(build: Path, tmp_path: Path) -> None:
    assert check_tokenizer(DecoderConfig(preset="tiny_llama"), build) == []
    (tmp_path / "empty").mkdir()
    assert check_tokenizer(DecoderConfig(name=str(tmp_path / "empty")), build) == []


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        ("{", r"tokenizer\.json: cannot be read"),
        ('{"model": {"type": "none"}}', r"tokenizer\.json: cannot be used \(.*\); download it again"),
    ],
)
def test_a_damaged_file_is_a_problem_and_not_taken_for_none(
    build: Path, tmp_path: Path, damaged: str, words: str
) -> None:
    config = decoder(tmp_path / "decoder", text_tokenizers.BYTE_FOLDER)
    (tmp_path / "decoder/tokenizer.json").write_text(damaged)
    (problem,) = check_tokenizer(config, build)
    assert re.match(rf"model\.decoder: {tmp_path / 'decoder'}/{words}", problem)


def test_a_file_is_loaded_after_its_trial_alone(build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "_sound", set())
    monkeypatch.setattr(tokenizer_trial, "_TRIAL", "import os; os.abort()")
    (problem,) = check_tokenizer(decoder(tmp_path / "decoder", text_tokenizers.BYTE_FOLDER), build)
    assert "the tokenizers library fails on it" in problem


def test_a_run_on_ids_of_another_tokenizer_does_not_start(tmp_path: Path) -> None:
    config = train_runs.config_file(tmp_path, train_runs.compiled(tmp_path / "data"))
    folder = tmp_path / "decoder"
    decoder(folder, text_tokenizers.BYTE_FOLDER)
    sizes = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(sizes))
    settings = ["model.decoder.preset=null", f"model.decoder.name={folder}"]
    prepare(config, settings, 1, loads_model=True)
    with_swapped_tokens(folder / "tokenizer.json")
    with pytest.raises(ConfigError, match="the build's tokenizer is not that of"):
        prepare(config, settings, 1, loads_model=True)
