"""Every error has one base class, an exit code, and a page that is true of it."""

from __future__ import annotations

import ast
import builtins
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dst
import preprocess
import shards
import trainer
from dst.common.cli import run_command
from dst.errors import ConfigError, ControlTextError, DsvlError, TemplateError, TokenizerError
from preprocess.adapters.parsing.fields import question
from preprocess.adapters.parsing.record_files import read_records
from preprocess.blend.load import load_blend
from preprocess.errors import DataError, RejectError
from shards.errors import FieldError, ImageError, LocationError, NetworkError, ShardError
from shards.images.pixels import open_image
from shards.storage import retries
from shards.typed_json import PositiveCount, from_json
from tests.support.paths import ROOT
from trainer.distributed.heartbeats import ENDED, LostRank
from trainer.errors import (
    GpuMemoryError,
    LostRankError,
    QueueFullError,
    RequestError,
    StoppingError,
    TooLongError,
    TrainError,
)
from trainer.evaluation.metrics import Answered, score

NOT_AN_ERROR = {"Stopped", "_WorkerDied", "DroppedRecord", "ClientGone"}
"""Exceptions that carry a request, or what their catcher decides about"""


def test_every_exception_of_the_packages_has_the_one_base_class_and_is_in_a_file_of_errors() -> None:
    raised = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    known = {cls.__name__ for cls in EXAMPLES} | {"DsvlError"}
    for package in ("dst", "shards", "preprocess", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name not in NOT_AN_ERROR:
                    bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    if bases & (raised | known):
                        assert path.name == "errors.py", f"{path}: {node.name} is not in the package's errors.py"
                        assert node.name in known, f"{path}: {node.name} has no example in this test"
    assert all(issubclass(cls, DsvlError) for cls in EXAMPLES)


def no_blend() -> None:
    Path("blend.yaml").write_text(
        "tokenizer: t\ndatasets: [{name: a, adapter: llava, root: ., samples: all, weights: 2}]\n"
    )
    load_blend(Path("blend.yaml"))


def no_template() -> None:
    Path("mine.jinja").write_text("{% for x in %}")
    dst.load_template("mine.jinja")


def half_a_character() -> None:
    chat = dst.ChatTokenizer(dst.load_template("vicuna"), dst.load_tokenizer(ROOT / "examples/tokenizer"))
    chat.encode([{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}])


def no_network() -> None:
    def fail() -> None:
        raise TimeoutError("timed out")

    retries.retried(fail)


def no_memory() -> None:
    from trainer.cli import _translate

    error = _translate(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB"))
    assert error is not None
    raise error


def lost_rank() -> None:
    raise LostRankError(str(LostRank(rank=3, host="node-b", step=18, cause=ENDED)), 3)


def no_references() -> None:
    score([Answered(dataset="vqa", key="k7", kind="vqa", prediction="yes", references=())])


def too_long() -> None:
    raise TooLongError(4101, 4096)


def full_queue() -> None:
    raise QueueFullError(64)


def stopping() -> None:
    raise StoppingError


def bad_request() -> None:
    from trainer.serving.chat_request import Defaults, parse_chat
    from trainer.serving.limits import Limits

    body = b'{"model": "m", "messages": [{"role": "user", "content": "?"}], "temperature": 3}'
    parse_chat(body, Limits(), Defaults())


EXAMPLES: dict[type[DsvlError], tuple[Callable[[], object], int]] = {
    ConfigError: (no_blend, 2),
    TemplateError: (no_template, 2),
    TokenizerError: (lambda: dst.load_tokenizer("models/x/y"), 2),
    ControlTextError: (half_a_character, 1),
    ShardError: (lambda: shards.open("build"), 1),
    LocationError: (lambda: shards.open("s4://bucket/build"), 2),
    NetworkError: (no_network, 1),
    FieldError: (lambda: from_json(PositiveCount, 0, "config.image.size"), 1),
    ImageError: (lambda: open_image(b"text"), 1),
    DataError: (lambda: list(read_records(Path("llava/detail_23k.json"), ())), 1),
    RejectError: (lambda: question(7), 1),
    TrainError: (no_references, 1),
    GpuMemoryError: (no_memory, 1),
    LostRankError: (lost_rank, 1),
    TooLongError: (too_long, 1),
    QueueFullError: (full_queue, 1),
    StoppingError: (stopping, 1),
    RequestError: (bad_request, 1),
}


@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.__name__)
def test_the_example_and_the_exit_code_of_the_page_are_those_of_the_error(
    cls: type[DsvlError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retries, "sleep", lambda seconds: None)
    cause, exit_code = EXAMPLES[cls]
    with pytest.raises(DsvlError) as caught:
        cause()
    assert type(caught.value) is cls
    assert caught.value.exit_code == exit_code
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {cls.__name__}\n")[2].partition("\n## ")[0]
    (example,) = re.findall(r"^Example: `(.*)`$", section, re.MULTILINE)
    assert caught.value.lines()[0].startswith(example.removesuffix("...").rstrip())
    assert f"exit code {exit_code}." in section
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.lines()) == (cls, str(caught.value), caught.value.lines())


def test_the_errors_of_each_part_are_importable_from_its_top_package() -> None:
    for package, errors in (
        (dst, {"DsvlError", "ConfigError", "ControlTextError", "TemplateError", "TokenizerError"}),
        (shards, {"DsvlError", "ImageError", "LocationError", "ShardError"}),
        (preprocess, {"DsvlError", "ConfigError", "DataError"}),
        (trainer, {"DsvlError", "ConfigError", "GpuMemoryError", "LostRankError", "QueueFullError", "TrainError"}),
        (trainer, {"StoppingError", "TooLongError"}),
    ):
        assert errors <= set(package.__all__)
        assert all(issubclass(getattr(package, name), DsvlError) for name in errors)


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "--blend", str(ROOT / "examples/blend.yaml"), "--out", "s3://bucket/build"],
        ["verify", "--build", "s3://bucket/build"],
        ["stats", "--build", "s3://bucket/build"],
        ["inspect", "--build", "s3://bucket/build"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_ends_with_the_same_exit_code_where_the_package_for_a_url_is_missing(
    arguments: list[str], tmp_path: Path
) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        f"sys.argv = {['dsvl-prep', *arguments]}\n"
        "from preprocess.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "error: s3://bucket/build: s3 needs a package that is not installed; pip install 'dsvl[remote]'"
    )


def test_an_error_of_a_library_that_nobody_foresaw_is_not_hidden() -> None:
    import click

    @click.command()
    def work() -> None:
        raise ZeroDivisionError("a bug")

    argv, sys.argv = sys.argv, ["work"]
    try:
        with pytest.raises(ZeroDivisionError, match="a bug"):
            run_command(work, stopped="stopped")
    finally:
        sys.argv = argv
