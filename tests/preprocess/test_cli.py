"""The command line in real processes: output, exit codes, and errors without tracebacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from preprocess.adapters.registry import ADAPTERS
from preprocess.cli import cli
from tests.support.commands import dsvl_prep
from tests.support.paths import ROOT
from tests.support.small_blends import SAMPLES, TOKENIZER, build, chat_blend, chat_record, write_images


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    names = write_images(folder / "mine", 4)
    blend = chat_blend(folder, [chat_record(number, images=[name], rounds=2) for number, name in enumerate(names)])
    done = dsvl_prep("build", "--blend", blend, "--out", folder / "build", "--workers", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert "compiling" in done.stderr
    report = json.loads(done.stdout)
    assert set(report) == {"datasets", "notes", "questions", "changed", "reused_tasks", "built_tasks"}
    expected = {"records", "members", "samples", "rejects", "images", "tokens", "trained_tokens", "share"}
    assert expected <= set(report["datasets"]["mine"])
    return folder / "build"


def test_build_prints_a_table_with_what_became_of_every_dataset(built: Path) -> None:
    done = dsvl_prep("build", "--blend", built.parent / "blend.yaml", "--out", built)
    assert done.returncode == 0
    header = ["dataset", "records", "members", "train", "eval", "rejects", "images", "tokens", "trained", "share"]
    assert header in [line.split() for line in done.stdout.splitlines()]
    for word in ("mine", "100.0%", "reused"):
        assert word in done.stdout


def test_a_build_is_named_by_an_argument_or_by_an_option(built: Path) -> None:
    asked = ["inspect", "--limit", "1", "--json"]
    answers = [CliRunner().invoke(cli, [*asked, *named]) for named in ([str(built)], ["--build", str(built)])]
    assert answers[0].stdout == answers[1].stdout
    assert json.loads(answers[0].stdout)["dataset"]
    for named, got in (([], "none"), ([str(built), "--build", str(built)], f"{built} and {built}")):
        refused = CliRunner().invoke(cli, [*asked, *named])
        assert refused.exit_code == 2
        assert f"the build: got {got}; expected one folder or URL, as BUILD or with --build" in refused.stderr


def test_verify_says_sound_or_what_is_wrong_with_exit_code_1(built: Path, tmp_path: Path) -> None:
    assert "sound; 1 shards, 4 samples, 4 images" in dsvl_prep("verify", "--build", built).stdout
    shutil.copytree(built, tmp_path / "copy")
    shard = next((tmp_path / "copy").glob("shards/*/*.tar"))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    done = dsvl_prep("verify", "--build", tmp_path / "copy")
    assert done.returncode == 1
    assert shard.name in done.stderr
    assert "sha256" in done.stderr
    assert "remove the files named above and run the same dsvl-prep build: it makes just them again" in done.stderr
    shard.unlink()
    assert dsvl_prep("build", "--blend", built.parent / "blend.yaml", "--out", tmp_path / "copy").returncode == 0
    assert dsvl_prep("verify", "--build", tmp_path / "copy").returncode == 0


def test_verify_notes_an_image_that_is_on_both_sides_under_two_names(tmp_path: Path) -> None:
    write_images(tmp_path / "mine", 1)
    other_bytes = (tmp_path / "mine/0.jpg").read_bytes() + b"after the end"  # the same pixels, so not the same file
    (tmp_path / "mine/copy.jpg").write_bytes(other_bytes)
    records = [chat_record(0, images=["0.jpg"]), chat_record(1, images=["copy.jpg"], split="val")]
    build(chat_blend(tmp_path, records, image={"store": "resized", "size": 16}))
    done = dsvl_prep("verify", "--build", tmp_path / "build")
    assert done.returncode == 0
    assert "note: " in done.stdout
    assert "mine-000000001" in done.stdout


def test_stats_counts_samples_per_dataset_and_split(built: Path) -> None:
    (row,) = json.loads(dsvl_prep("stats", "--build", built, "--json").stdout)["datasets"]
    assert (row["dataset"], row["split"], row["samples"], row["images"]) == ("mine", "train", 4, 4)
    assert row["length_max"] >= row["length_p50"] > 16
    assert "mine" in dsvl_prep("stats", "--build", built).stdout


def test_inspect_json_gives_one_object_a_line(built: Path) -> None:
    lines = dsvl_prep("inspect", "--build", built, "--json", "--limit", "2").stdout.splitlines()
    assert len(lines) == 2
    sample = json.loads(lines[0])
    for key in ("key", "dataset", "source", "split", "text", "ids", "labels", "images"):
        assert key in sample
    assert set(sample["images"][0]) == {"name", "width", "height", "sha256"}
    only = dsvl_prep("inspect", "--build", built, "--json", "--key", sample["key"]).stdout.splitlines()
    assert [json.loads(line)["key"] for line in only] == [sample["key"]]


def test_inspect_shows_images_and_colours_what_is_trained(built: Path) -> None:
    from rich.console import Console

    from preprocess.views import inspect as inspector

    assert dsvl_prep("inspect", "--build", built, "--split", "train", "--json").stdout
    assert "on the eval side" in dsvl_prep("inspect", "--build", built, "--split", "eval").stderr
    done = dsvl_prep("inspect", "--build", built, "--limit", "1")
    assert "image 1: 0.jpg  32 x 24" in done.stdout
    sample = next(iter(inspector.inspect_samples(built, limit=1)))
    console = Console(force_terminal=True, color_system="standard", width=100)
    with console.capture() as shown:
        console.print(inspector.coloured(sample.pieces))
    assert "\x1b[1;32mAnswer 0 of record 0.</s>" in shown.get()


def test_inspect_names_a_key_or_dataset_that_is_not_there(built: Path) -> None:
    assert dsvl_prep("inspect", "--build", built, "--key", "nope").returncode == 1
    done = dsvl_prep("inspect", "--build", built, "--dataset", "nope")
    assert done.returncode == 1
    assert "it has mine" in done.stderr


@pytest.mark.parametrize("name", sorted(ADAPTERS))
def test_render_shows_conversations_of_every_adapter(name: str, tmp_path: Path) -> None:
    root = SAMPLES
    if name == "chat":
        root = tmp_path
        (tmp_path / "a.jsonl").write_text(json.dumps(chat_record(0)))
    done = dsvl_prep("render", "--adapter", name, "--root", root, "--limit", "2")
    assert done.returncode == 0, done.stderr
    assert "### Answer:" in done.stdout
    assert "</s>" in done.stdout


def test_adapters_lists_names_sources_licences_and_options() -> None:
    rows = [json.loads(line) for line in dsvl_prep("adapters", "--json").stdout.splitlines()]
    assert [row["name"] for row in rows] == list(ADAPTERS)
    assert all(row["layout"] and row["where"] and row["licence"] for row in rows)
    text = dsvl_prep("adapters").stdout
    assert all(name in text for name in ADAPTERS)


def test_init_finds_the_layouts_and_its_file_builds(tmp_path: Path) -> None:
    blend = tmp_path / "blend.yaml"
    done = dsvl_prep("init", "--root", SAMPLES.parent, "--out", blend)
    assert done.returncode == 0, done.stderr
    tree = yaml.safe_load(blend.read_text(encoding="utf-8"))
    assert {entry["adapter"] for entry in tree["datasets"]} == set(ADAPTERS)  # chat: photos.json of the extensions
    assert blend.read_text(encoding="utf-8").count("#") > 30
    done = dsvl_prep(
        "build", "--blend", blend, "--out", tmp_path / "build", "--set", f"tokenizer={TOKENIZER}", "--json"
    )
    assert done.returncode == 0, done.stderr
    again = dsvl_prep("init", "--root", SAMPLES, "--out", blend)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["build"], 2, "Missing option '--blend'"),
        (["build", "--blend", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read"),
        (["build", "--blend", "nowhere.yaml", "--workers", "0"], 2, "--workers"),
        (["verify", "--build", "nowhere"], 1, "no manifest.json there"),
        (["stats", "--build", "nowhere"], 1, "no manifest.json there"),
        (["inspect", "--build", "nowhere"], 1, "no manifest.json there"),
        (["init", "--root", "nowhere"], 2, "no such folder"),
        (["render", "--adapter", "lava", "--root", "."], 2, "did you mean llava?"),
        (["render", "--adapter", "llava", "--root", "nowhere"], 2, "no folder nowhere"),
        (["render", "--adapter", "llava", "--root", "."], 2, "nothing below"),
        (["render", "--adapter", "llava", "--root", ".", "--template", "vicuma"], 2, "did you mean vicuna?"),
        (["bild"], 2, "No such command"),
    ],
)
def test_wrong_usage_says_what_was_expected(tmp_path: Path, arguments: list[str], code: int, expected: str) -> None:
    done = dsvl_prep(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datasets: [", "line 1, column"),
        ("a: 1\na: 2\n", "'a' occurs twice"),
        ("- 1\n", "expected keys"),
        ("tokenizer: 5\ndatasets: []\n", "expected text"),
        ("datasets: []\n", "tokenizer: missing"),
    ],
)
def test_a_broken_blend_file_ends_with_code_2_and_its_place(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "blend.yaml").write_text(text)
    done = dsvl_prep("build", "--blend", "blend.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ('[{"id": "1", "image": "a.jpg",', "line 1, column 31"),
        ('[\n{"id": 1},\n{"id": 2,}\n]', "line 3, column 10"),
        ('{"a": 1}', "detail_23k.json"),
        ("", "detail_23k.json"),
    ],
)
def test_a_broken_annotation_file_ends_with_code_1_naming_file_line_and_column(
    tmp_path: Path, data: str, expected: str
) -> None:
    (tmp_path / "llava").mkdir()
    (tmp_path / "coco/train2017").mkdir(parents=True)
    (tmp_path / "llava/detail_23k.json").write_text(data)
    blend = {
        "tokenizer": str(TOKENIZER),
        "datasets": [{"name": "l", "adapter": "llava", "root": ".", "samples": "all"}],
    }
    (tmp_path / "blend.yaml").write_text(yaml.safe_dump(blend))
    done = dsvl_prep("build", "--blend", "blend.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "detail_23k.json" in done.stderr
    assert expected in done.stderr


def test_error_messages_hold_no_control_characters(tmp_path: Path) -> None:
    blend = chat_blend(tmp_path, [{"id": "\x1b[2J", "messages": []}], limits={"max_reject_share": 0.0})
    done = dsvl_prep("build", "--blend", blend, "--out", tmp_path / "\x1b[31mred")
    assert done.returncode == 1
    assert "\x1b" not in done.stderr.split("error:", 1)[1]
    assert "\\x1b[31mred" in done.stderr


def test_as_many_workers_as_cpus_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    from dst.common.cpus import usable_cpus
    from preprocess.cli_compare import overlap

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    assert usable_cpus() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus() == (os.cpu_count() or 1)
    (workers,) = [option for option in overlap.params if option.name == "workers"]
    assert workers.default is usable_cpus


def test_help_loads_none_of_the_heavy_packages() -> None:
    code = (
        "import sys\n"
        "from preprocess.cli import cli\n"
        "try: cli(['--help'])\n"
        "except SystemExit: pass\n"
        "import dst, shards\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'ray'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
