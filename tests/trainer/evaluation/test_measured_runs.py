"""A run on samples with branches is measured alike while it trains, and by `eval` in each form that it can have."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pycocoevalcap")

import shards
from shards.loader import Loader
from tests.support import model_batches, small_blends, train_runs
from tests.support.shared_builds import question_blend
from tests.support.trainer_commands import run_command
from trainer.config.run import load_config
from trainer.inference.open_model import open_model

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)


@pytest.mark.slow
def test_a_run_a_checkpoint_and_an_export_are_measured_alike_and_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blend = question_blend(
        tmp_path / "data",
        dict.fromkeys(range(9), 5),
        image_tokens=train_runs.IMAGE_TOKENS,
        image={"size": train_runs.SIDE},
        limits={"max_length": 192},
        split={"eval": 0.3},
    )
    build = small_blends.build(blend).path
    config = train_runs.config_file(
        tmp_path,
        build,
        model={"attention": "causal"},
        schedule={"steps": 4},
        evaluation={"every": 4},
        learning_rates={"decoder": None, "lora": 1e-2},
        lora={"decoder": {"rank": 4}},
    )
    train_runs.train(config)
    out = tmp_path / "out"
    *steps, evaluation = train_runs.journal(out)
    assert evaluation["kind"] == "eval"
    batches = Loader(shards.open(build), batch_size=4, max_length=192, seed=load_config(config).seed, decode="none")
    expected = [batch.num_records for batch in islice(batches, len(steps))]
    assert [step["records_per_second"] * step["seconds_per_step"] for step in steps] == pytest.approx(expected)
    assert sum(expected) > 4 * len(steps), "a step has four sequences, and each of some samples several records"
    assert not open_model(out)[0].model.expects_branches, "a run answers as its export does"
    measured = []
    assert run_command(monkeypatch, capsys, "export", "--model", out, "--out", tmp_path / "exported")[0] == 0
    for model in (out, out / "checkpoints" / "step-00000004", tmp_path / "exported"):
        where = ["--build", build] if model.name == "exported" else []
        command = ["eval", "--model", model, *where, "--limit", 2, "--max-new-tokens", 3, "--workers", 0]
        code, printed, err = run_command(monkeypatch, capsys, *command, "--out", tmp_path / "report", "--json")
        assert code == 0, err
        lines = (tmp_path / "report" / "results.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(line)["answer"] for line in lines]
        measured.append((json.loads(printed)["loss"], json.loads(printed)["scores"], answers))
    assert measured[0] == measured[1]
    assert measured[0][1:] == measured[2][1:]
    command = ["eval", "--model", out, "--limit", 2, "--max-new-tokens", 3, "--workers", 0, "--blind"]
    code, printed, err = run_command(monkeypatch, capsys, *command, "--out", tmp_path / "report", "--json")
    assert code == 0, err
    rows = json.loads(printed)["blind"]
    assert {row["measure"] for row in rows} == {"loss", "exact_match"}
    assert rows[0]["right"] == pytest.approx(evaluation["loss"], rel=1e-4), "every record has images"
    assert "Does it look?" in (tmp_path / "report" / "results.html").read_text(encoding="utf-8")
    code, printed, err = run_command(monkeypatch, capsys, *command, "--no-answers")
    assert (code, "exchanged" in printed) == (0, True), err
    for loss, _, _ in measured:
        assert loss["all"] == pytest.approx(evaluation["loss"], rel=1e-4)
        assert loss["datasets"] == pytest.approx(evaluation["datasets"], rel=1e-4)
