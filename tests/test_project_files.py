"""Checks outside the test suite run what it runs: commit hooks, the workflow and the documentation's navigation."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def nav_pages(entries: list[Any]) -> list[str]:
    actual: list[str] = []
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        actual += nav_pages(target) if isinstance(target, list) else [target]
    return actual


def test_commit_hooks_run_the_tools_of_the_development_environment() -> None:
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    needs = {re.split(r"[<>=\[]", need)[0] for need in project()["optional-dependencies"]["dev"]}
    tools = set()
    for hook in hooks:
        program = Path(shlex.split(hook["entry"])[0])
        assert hook["language"] == "system", f"{hook['id']}: another environment has other versions"
        assert program.parent == Path(".venv/bin")
        assert f"$(BIN)/{program.name}" in MAKEFILE, f"{hook['id']} is not part of make lint or make types"
        tools.add(program.name)
    assert tools == {"ruff", "mypy", "codespell"}
    assert tools <= needs


def test_the_workflow_tests_every_supported_python_on_linux_and_macos() -> None:
    matrix = read_yaml(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    pythons = [line.rpartition(" ")[2] for line in project()["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert matrix["python"] == pythons
    assert [system.partition("-")[0] for system in matrix["os"]] == ["ubuntu", "macos"]


def test_the_workflow_runs_make_targets_alone() -> None:
    for name, job in read_yaml(".github/workflows/ci.yml")["jobs"].items():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert len(commands) == 1, name
        program, target = commands[0].split(maxsplit=1)
        targets = job["strategy"]["matrix"]["target"] if "matrix.target" in target else [target]
        assert program == "make"
        for each in targets:
            assert re.search(rf"^{each}:", MAKEFILE, re.MULTILINE), each


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "tools/docs_hooks.py").read_text(encoding="utf-8")
    elsewhere = re.findall(r'^    "[\w./]+": "(\w+\.md)",$', text, re.MULTILINE)
    docs = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(nav_pages(read_yaml("mkdocs.yml")["nav"])) == sorted([*docs, *elsewhere])


def test_the_site_loads_nothing_from_elsewhere() -> None:
    config = read_yaml("mkdocs.yml")
    assert config["theme"]["font"] is False
    assert config["strict"] is True
    assert "extra_css" not in config
    assert "extra_javascript" not in config
    for path in (ROOT / "docs").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert "```mermaid" not in text, f"{path.name}: mermaid is loaded from a CDN; draw an SVG in docs/figures"
        assert not re.search(r"!\[[^\]]*\]\(https?:", text), f"{path.name} shows an image of another site"
