"""The pages tell the truth: generated ones are up to date, and every link, command, setting and example works."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

import preprocess.cli
import trainer.cli
from preprocess.blend.load import load_blend
from tests.support.paths import ROOT
from trainer.config.run import load_config

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "shards/FORMAT.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = {"dsvl-prep": preprocess.cli.cli, "dsvl-train": trainer.cli.cli}
SHELL = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


def make_docs() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    generated: dict[str, str] = module.pages()
    return generated


def shell_lines(text: str) -> Iterator[str]:
    """The lines of shell blocks, fenced or indented; a line that ends in a backslash is joined with the next."""
    blocks = SHELL.findall(text) + INDENTED.findall(FENCE.sub("", text))
    for block in blocks:
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def commands(text: str) -> list[list[str]]:
    """Every dsvl command of a page's shell blocks, as words; what a shell would redirect is left out."""
    actual = []
    for line in shell_lines(text):
        if line.startswith(tuple(f"{program} " for program in PROGRAMS)):
            words = shlex.split(re.split(r"\s[<>|]\s|\s&", line)[0], comments=True)
            actual.append(words)
    return actual


def test_generated_pages_are_up_to_date() -> None:
    for name, text in make_docs().items():
        assert (ROOT / "docs" / name).read_text(encoding="utf-8") == text, f"run tools/make_docs.py to renew {name}"


@pages
def test_a_page_is_not_empty_and_its_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.strip(), f"{page.name} is empty"
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:dst|preprocess|shards|trainer|tests|tools|docs|examples)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


@pages
def test_every_command_of_a_page_is_one_that_its_program_accepts(page: Path) -> None:
    for program, *arguments in commands(page.read_text(encoding="utf-8")):
        command = PROGRAMS[program].commands.get(arguments[0])
        assert command is not None, f"{program} has no command {arguments[0]}"
        try:
            command.make_context(arguments[0], arguments[1:])
        except click.UsageError as error:
            pytest.fail(f"{program} {shlex.join(arguments)}: {error.format_message()}")


@pages
def test_every_command_that_a_sentence_names_exists(page: Path) -> None:
    for program, command in re.findall(r"`(dsvl-\w+) (\w+)", page.read_text(encoding="utf-8")):
        assert command in PROGRAMS[program].commands, f"{program} {command}"


@pages
def test_every_make_target_of_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [line for line in shell_lines(text) if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in [*(line.split()[1] for line in lines), *re.findall(r"`make ([\w-]+)", text)]:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pages
def test_every_whole_configuration_of_a_page_is_valid(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(
        re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    ):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block, encoding="utf-8")
        tree = yaml.safe_load(block)
        if "datasets" in tree:
            load_blend(file)
        elif {"build", "out", "model"} <= tree.keys():
            if tree["model"].keys() == {"init_from"}:  # which folder that is does not matter here
                tree["model"] = yaml.safe_load((ROOT / "examples/train.yaml").read_text("utf-8"))["model"]
                file.write_text(yaml.safe_dump(tree), encoding="utf-8")
            load_config(file)


def test_the_readme_shows_every_command() -> None:
    shown = {(program, command) for program, command, *_ in commands((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert shown == {(program, command) for program, group in PROGRAMS.items() for command in group.commands}


def test_the_template_of_the_docs_is_one_that_works(tmp_path: Path) -> None:
    from dst import ChatTokenizer, load_template, load_tokenizer

    text = (ROOT / "docs/templates.md").read_text(encoding="utf-8")
    (tmp_path / "mine.jinja").write_text(re.findall(r"```jinja\n(.*?)\n```", text, re.DOTALL)[0])
    ChatTokenizer(load_template(tmp_path / "mine.jinja"), load_tokenizer(ROOT / "examples/tokenizer"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves tars open
def test_the_examples_of_the_reading_page_run(tmp_path: Path) -> None:
    from tests.support.small_blends import build

    build(ROOT / "examples/blend.yaml", out=tmp_path / "build/demo")
    text = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code.count("import shards") >= 1
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
