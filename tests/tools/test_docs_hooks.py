"""Links of the docs work in the repository and in the site."""

from __future__ import annotations

import pytest
from mkdocs.config import load_config
from mkdocs.structure.files import get_files
from mkdocs.structure.pages import Page

from tests.support.paths import ROOT
from tools import docs_hooks


def rendered(uri: str, markdown: str) -> str:
    """What the site's page at `uri` makes of it."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    files = config.plugins.on_files(get_files(config), config=config)  # calls the hook as a build does
    file = files.get_file_from_path(uri)
    assert file is not None
    return docs_hooks.on_page_markdown(markdown, Page(None, file, config), config, files)


@pytest.mark.parametrize(
    ("uri", "written", "expected"),
    [
        ("index.md", "[words](docs/concepts.md#mmca)", "[words](concepts.md#mmca)"),
        ("index.md", "![way](docs/figures/overview.svg)", "![way](figures/overview.svg)"),
        ("reading.md", "[format](../shards/FORMAT.md)", "[format](format.md)"),
        ("quickstart.md", "[start](../README.md#install-and-try)", "[start](index.md#install-and-try)"),
        ("notes/loader.md", "[numbers](../benchmarks.md)", "[numbers](../benchmarks.md)"),
        ("format.md", "[rejects](../docs/rejects.md)", "[rejects](rejects.md)"),
    ],
)
def test_a_link_to_a_page_goes_to_its_place_in_the_site(uri: str, written: str, expected: str) -> None:
    assert rendered(uri, written) == expected


def test_a_link_to_a_file_outside_the_site_becomes_its_text() -> None:
    assert rendered("index.md", "See [the credits](examples/data/CREDITS.md).") == "See the credits."


def test_addresses_and_code_stay_as_they_are() -> None:
    text = "[paper](https://arxiv.org/abs/2309.14327) `[a](docs/blend.md)`\n```text\n[a](docs/blend.md)\n```\n"
    assert rendered("index.md", text) == text


def test_a_link_to_nothing_stays_so_that_the_strict_build_fails() -> None:
    assert rendered("index.md", "[gone](docs/nowhere.md)") == "[gone](docs/nowhere.md)"
