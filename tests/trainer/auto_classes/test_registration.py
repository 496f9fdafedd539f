"""Imports around the auto classes: `import trainer` registers them, and no code of a folder is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("open_clip")

import torch

from dst.errors import ConfigError
from shards import Build
from tests.support import auto_models, exports, extensions, model_batches
from tests.support.auto_models import MMCA, Written, opened
from tests.support.paths import ROOT

one_thread = pytest.fixture(scope="module", autouse=True)(model_batches.on_one_thread)
build = pytest.fixture(scope="module")(exports.small_build)
written = pytest.fixture(auto_models.written)


WITH_A_BUFFER = """
import torch
from trainer.model.encoders.base import Tower
from torch import nn

class Module(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]), persistent=False)

    def checkpoint_activations(self):
        pass

    def forward(self, pixels):
        return self.linear((pixels.flatten(2)[:, :, :4] * self.scale[:, None]).transpose(1, 2))

def ENCODER(config, weights):
    half = (0.5,) * 3
    return Tower(module=Module(), image_size=32, width=8, num_tokens=4, mean=half, std=half, portable=config)
"""


def test_code_of_other_packages_is_imported_only_if_the_caller_names_it(
    build: Build, written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in extensions.on_path(monkeypatch, tmp_path / "code"):
        (tmp_path / "code").mkdir()
        extensions.write_module(tmp_path / "code", "buffered", WITH_A_BUFFER)
        kind = "buffered:ENCODER"
        made, folder = written(**MMCA, encoder={"kind": kind})
        extensions.forget("buffered")
        with pytest.raises(ConfigError, match="its encoder is the extension buffered:ENCODER"):
            opened(folder)
        assert "buffered" not in sys.modules
        two = exports.sample_images()
        expected = exports.logits_of(
            made, exports.expanded(made, exports.chat_of(build)), exports.pixels_of(two, build)
        )
        with torch.no_grad():
            logits = opened(folder, allow_extensions=[kind])(**exports.processed(folder, two)).logits
        assert (logits - expected).abs().max() < 1e-5


def test_code_in_the_folder_is_never_run(build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    (folder / "evil.py").write_text("raise SystemExit('the code of the folder was run')\n")
    tree = json.loads((folder / "config.json").read_text())
    tree["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"), "evil.Evil")
    (folder / "config.json").write_text(json.dumps(tree))
    assert type(opened(folder)).__module__ == "trainer.auto_classes.model"


def in_new_process(code: str, *arguments: str) -> str:
    """What the code prints. Python finds this project's packages."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


OPEN = """
try:
    print(type(AutoModelForImageTextToText.from_pretrained(sys.argv[1])).__name__)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["trainer", "transformers"])
def test_the_order_of_imports_does_not_matter(first: str, build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    lines = ["import trainer", "from transformers import AutoModelForImageTextToText, AutoImageProcessor"]
    code = "\n".join(
        ["import sys", *(lines if first == "trainer" else ["import trainer.compat.torchvision", *lines[::-1]]), OPEN]
    )
    assert in_new_process(code, str(folder)).strip().endswith("DsvlForConditionalGeneration")


@pytest.mark.slow
def test_without_the_import_transformers_says_what_to_do(build: Build, written: Written) -> None:
    _, folder = written(**MMCA)
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("guard", {str(ROOT / "trainer/compat/torchvision.py")!r})
guard = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guard)
guard.declare_operators()
from transformers import AutoModelForImageTextToText
{OPEN}
"""
    said = in_new_process(code, str(folder))
    assert "is-not-llava-import-trainer-first" in said
    assert "does not recognize this architecture" in said


def test_importing_trainer_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, trainer; print(*{'torch', 'transformers'} & set(sys.modules))"
    assert in_new_process(code).strip() == ""
