"""An install of dsvl with one extra does what README says of it, and no install holds what it does not require."""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from tests.support import small_blends
from tests.support.clean_installs import Venvs, name_of, succeed
from tests.support.extras import EXTRAS, OURS, providers
from tests.support.forked_programs import ForkedPrograms
from tests.support.paths import ROOT

INSTALLS: list[tuple[str, ...]] = [(), *((extra,) for extra in EXTRAS)]


@pytest.mark.parametrize("extras", INSTALLS, ids=name_of)
def test_an_install_finds_the_modules_of_its_requirements_and_no_others(
    venvs: Venvs, extras: tuple[str, ...], tmp_path: Path
) -> None:
    venv = venvs(*extras)
    bring = {module: names - {"dsvl"} for module, names in providers().items()}
    del bring["pip"]  # setuptools has a finder for it, which warns if distutils is loaded
    modules = sorted(module for module, names in bring.items() if names and module.isidentifier() and find_spec(module))
    assert {"torch", "transformers", "ray", "s3fs", "gcsfs", "pycocoevalcap", "moto", "pytest"} <= {*modules}
    code = """
        import json, sys
        from importlib import metadata, util

        found = [name for name in json.load(sys.stdin) if util.find_spec(name)]
        print(json.dumps([found, sys.path, [one.name for one in metadata.distributions()]]))
    """
    names = [*modules, *OURS, "tests", "tools"]
    printed = succeed(venv.run("python", "-c", textwrap.dedent(code), cwd=tmp_path, stdin=json.dumps(names)))
    actual, search_path, distributions = json.loads(printed)
    assert actual == [module for module in modules if bring[module] & venv.distributions] + OURS
    assert {canonicalize_name(name) for name in distributions} == {*venv.distributions, "dsvl"}
    assert [folder for folder in search_path if "site-packages" in folder] == [str(venv.site_packages)]


# One extra each

HEAVY_IMPORTS = """
from trainer.compat.deepspeed import quiet_deepspeed

quiet_deepspeed()
import deepspeed, peft, trainer.cli, trainer.export.export, trainer.training.run
import transformers.models.llama.modeling_llama
"""
"""What the commands of dsvl-train import"""

BATCHES = """
import sys
import shards
from shards.loader import Loader

loader = Loader(shards.open(sys.argv[1]), batch_size=1, max_length=1024, seed=1, workers=1, epochs=1)
print(sum(len(batch.samples[0]) for batch in loader), loader.state_dict()["cursor"])
"""


@pytest.mark.slow
def test_the_train_extra_loads_batches_trains_exports_chats_and_measures(
    venvs: Venvs, built: Path, user_folder: Path, tmp_path: Path
) -> None:
    config = yaml.safe_load(succeed(venvs("train").run("dsvl-train", "config", cwd=user_folder)))
    assert config["model"]["attention"] == "mmca"
    (tmp_path / "streams").mkdir()
    venv = venvs("train")
    with ForkedPrograms(
        venv.bin / "python", HEAVY_IMPORTS, scratch=tmp_path / "streams", environment=venv.environment()
    ) as programs:

        def train(*arguments: str | Path, stdin: str = "", path: Sequence[Path] = ()) -> str:
            script = venv.bin / "dsvl-train"
            return succeed(programs.run(script, *arguments, cwd=user_folder, stdin=stdin, path=path))

        assert succeed(programs.run(BATCHES, built, cwd=user_folder)).split()[0] == "8"
        changed = (f"build={built}", "out=run", "schedule.steps=2", "checkpoints.every=2", "evaluation.every=2")
        train("run", "--config", "examples/train.yaml", *(f"--set={setting}" for setting in changed))
        steps = [json.loads(line) for line in (user_folder / "run/metrics.jsonl").read_text().splitlines()]
        assert max(entry["step"] for entry in steps) == 2
        assert list((user_folder / "run").rglob("events.out.tfevents.*"))
        assert "exported: a dsvl folder (for trainer.load" in train("export", "--model", "run", "--out", "exported")
        questions = (user_folder / "examples/questions.txt").read_text(encoding="utf-8")
        assert train("chat", "--model", "exported", "--max-new-tokens", "4", stdin=questions)
        assert "held-out loss" in train("eval", "--model", "run", "--no-answers")
        # Caption scores are of a model's answers, so they take both extras.
        short = ("--no-loss", "--limit", "1", "--max-new-tokens", "2", "--json")
        scored = train("eval", "--model", "run", *short, path=[venvs("eval").site_packages])
    metrics = {row["dataset"]: row["metrics"].keys() for row in json.loads(scored)["scores"]}
    assert {"cider", "bleu_1", "bleu_4"} <= metrics["captions"]
    assert programs.stderr == ""  # no warning of a library


@pytest.mark.slow
def test_the_ray_extra_compiles_to_the_same_bytes(venvs: Venvs, built: Path, user_folder: Path) -> None:
    blend = ("--blend", "small.yaml", "--out", "build", "--workers", "1", "--set", "engine=ray")
    offline = {"RAY_USAGE_STATS_ENABLED": "0"}
    succeed(venvs("ray").run("dsvl-prep", "build", *blend, cwd=user_folder, variables=offline))
    assert small_blends.files_of(user_folder / "build") == small_blends.files_of(built)


@pytest.mark.slow
def test_the_remote_extra_builds_to_a_bucket_and_reads_from_it(venvs: Venvs, user_folder: Path, bucket: str) -> None:
    names = ("AWS_", "NO_PROXY")  # as s3_server sets them
    server = {name: value for name, value in os.environ.items() if name.startswith(names)}

    def run(program: str, *arguments: str) -> str:
        return succeed(venvs("remote").run(program, *arguments, cwd=user_folder, variables=server))

    url = f"{bucket}/build"
    assert f"published {url}" in run("dsvl-prep", "build", "--blend", "small.yaml", "--out", url, "--workers", "1")
    assert f"{url}: sound" in run("dsvl-prep", "verify", "--build", url)
    code = """
        import sys
        import fsspec
        import shards

        sample = shards.open(sys.argv[1])["train"][0]
        print(len(sample.ids), len(sample.images))
        fsspec.get_filesystem_class("gs")  # raises if it cannot be imported; no server of Google Cloud Storage is asked
    """
    num_ids, num_images = map(int, run("python", "-c", textwrap.dedent(code), url).split())
    assert num_ids > 20
    assert num_images == 1


def test_the_eval_extra_alone_scores_captions_without_torch_and_java(venvs: Venvs, tmp_path: Path) -> None:
    """That is the arithmetic; answers to score come from `dsvl-train eval`, which needs the train extra as well."""
    code = """
        import shutil, sys
        from trainer.evaluation.captions import caption_scores, missing_package

        answers, references = ["a dog runs", "two cats sit"], [["a dog runs", "it runs"], ["one cat sleeps"]]
        scores = caption_scores(answers, references)
        assert missing_package() is None
        assert scores.answer_cider[0] > scores.answer_cider[1] == 0
        assert scores.answer_bleu[0][0] > 0.99
        assert shutil.which("java") is None and "torch" not in sys.modules
    """
    venv = venvs("eval")
    path = {"PATH": str(venv.bin)}
    assert succeed(venv.run("python", "-c", textwrap.dedent(code), cwd=tmp_path, variables=path)) == ""


def test_the_video_extra_alone_reads_frames_of_a_video(venvs: Venvs, tmp_path: Path) -> None:
    code = """
        import io
        import av
        from preprocess.images.videos import Video

        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=24)
            stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame(32, 24, "yuv420p")))
            container.mux(stream.encode())
        video = Video(file.getvalue(), 10**6)
        print(len(video), video.frame(4)[0].size)
    """
    assert succeed(venvs("video").run("python", "-c", textwrap.dedent(code), cwd=tmp_path)) == "5 (32, 24)\n"


def test_the_view_extra_alone_serves_a_build_and_draws_its_report(venvs: Venvs, built: Path, tmp_path: Path) -> None:
    code = """
        import contextlib, sys, threading, urllib.request
        from pathlib import Path
        from preprocess.reports.build_report import make_report, write_page
        from preprocess.viewer.server import serve

        def look(address):
            with urllib.request.urlopen(address) as answer:
                print(answer.status, b"samples in" in answer.read())
            write_page(Path("report.html"), make_report(sys.argv[1]))
            print(Path("report.html").read_text().count("<svg") > 5, flush=True)
            import os, signal
            os.kill(os.getpid(), signal.SIGINT)

        def started(address):
            threading.Thread(target=look, args=(address,)).start()

        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after its shutdown, but not always
            serve(sys.argv[1], host="127.0.0.1", port=0, blend=None, started=started)
        print("stopped")
    """
    printed = succeed(venvs("view").run("python", "-c", textwrap.dedent(code), built, cwd=tmp_path))
    assert printed.splitlines() == ["200 True", "True", "stopped"]


def test_the_serve_extra_alone_has_every_file_of_the_chat_page(venvs: Venvs, tmp_path: Path) -> None:
    code = """
        import asyncio
        from trainer.serving.page import page_routes

        answers = {route.path: asyncio.run(route.endpoint(None)) for route in page_routes()}
        print(*sorted(path for path, answer in answers.items() if answer.body))
    """
    printed = succeed(venvs("serve").run("python", "-c", textwrap.dedent(code), cwd=tmp_path))
    named = [f"/page/{path.name}" for path in (ROOT / "trainer/serving/page").iterdir() if path.name != "index.html"]
    assert printed.split() == sorted(["/", "/page/page.css", *named])
