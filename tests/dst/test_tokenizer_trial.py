"""A tokenizer.json that ends the process that loads it is refused in one line by all others."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import dst
from dst import TokenizerError, tokenizer_trial
from tests.support.text_tokenizers import BYTE_FOLDER


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tokenizer_trial, "_sound", set())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((BYTE_FOLDER / name).read_bytes())
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(TokenizerError) as error:
        dst.load_tokenizer(folder)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"tokenizer {folder}: tokenizer.json cannot be used (")
    return text


@pytest.mark.parametrize(
    ("trial", "words"),
    [
        ("import os; os.abort()", "the tokenizers library fails on it: no message"),
        (
            "import os, sys; print('panicked at lib.rs:1:\\nout of bounds', file=sys.stderr, flush=True); os.abort()",
            "the tokenizers library fails on it: out of bounds",
        ),
        ("import sys; sys.exit('no model')", "(no model)"),
        ("import sys; sys.stdin.read(); x = bytearray(1 << 60)", "the tokenizers library fails on it"),
    ],
)
def test_whatever_ends_the_trial_is_the_reason_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, trial: str, words: str
) -> None:
    monkeypatch.setattr(tokenizer_trial, "_TRIAL", trial)
    assert words in refusal(folder)


def test_a_trial_that_does_not_end_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_trial, "_TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(tokenizer_trial, "LIMIT_S", 0.5)
    assert "it was not loaded after 0 s" in refusal(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"type": "none"}},
        {"model": {}},
        {"pre_tokenizer": {"type": "Unheard"}},
        {"added_tokens": [{"id": -1}]},
        {"normalizer": 3},
    ],
    ids=str,
)
def test_a_malformed_definition_is_refused_with_what_the_library_says(folder: Path, change: dict[str, Any]) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**definition, **change}))
    refusal(folder)


def test_json_that_is_nested_too_deep_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[" * 200_000)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read \(nested too deeply\)"):
        dst.load_tokenizer(folder)


def test_a_sound_file_is_tried_once_and_one_that_another_process_loaded_never(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[object] = []
    run = subprocess.run

    def counted(*arguments: Any, **options: Any) -> Any:
        runs.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    dst.load_tokenizer(folder, tried=True)
    assert len(runs) == 0
    for _ in range(2):
        dst.load_tokenizer(folder)
    assert len(runs) == 1
