"""The pages tell the truth: generated ones are up to date, and what README and docs name exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "shards/FORMAT.md", *sorted((ROOT / "docs").glob("*.md"))]


def make_docs() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


def test_generated_pages_are_up_to_date() -> None:
    for name, text in make_docs().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"run tools/make_docs.py to renew {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_not_empty_and_its_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.strip(), f"{page.name} is empty"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:dst|preprocess|shards|trainer|tests|tools|docs|examples)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_every_command_of_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for program, module, all_commands in (
        ("dsvl-prep", "preprocess.cli", {"build", "verify", "stats", "inspect", "render", "adapters", "init"}),
        ("dsvl-train", "trainer.cli", {"run", "config", "eval", "export", "chat"}),
    ):
        commands = set(re.findall(rf"^    {program} (\w+)", text, re.MULTILINE))
        assert commands == all_commands
        listed = subprocess.run([sys.executable, "-m", module, "--help"], check=True, capture_output=True, text=True)
        for command in commands:
            assert re.search(rf"^  {command} ", listed.stdout, re.MULTILINE), command
    targets = set(re.findall(r"^make ([\w-]+)|`make ([\w-]+)`|    make ([\w-]+)", text))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in {name for names in targets for name in names if name}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_template_of_the_docs_is_one_that_works(tmp_path: Path) -> None:
    from dst import ChatTokenizer, load_template, load_tokenizer

    text = (ROOT / "docs/templates.md").read_text(encoding="utf-8")
    (tmp_path / "mine.jinja").write_text(re.findall(r"```jinja\n(.*?)\n```", text, re.DOTALL)[0])
    ChatTokenizer(load_template(tmp_path / "mine.jinja"), load_tokenizer(ROOT / "examples/tokenizer"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves tars open
def test_the_examples_of_the_reading_page_run(tmp_path: Path) -> None:
    from preprocess.compiler.build import run_build

    run_build(ROOT / "examples/blend.yaml", out=tmp_path / "build/demo")
    text = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code.count("import shards") >= 1
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
