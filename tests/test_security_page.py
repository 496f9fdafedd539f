"""SECURITY.md names tests that exist."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_promise_names_a_test_that_exists() -> None:
    _, _, section = PAGE.partition("## What is not trusted")
    rows = [line for line in section.partition("## Limits")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.search(r"`(tests/[\w/]+\.py)(?:::(\w+))?` \|$", row)
        assert named, row
        source = (ROOT / named[1]).read_text(encoding="utf-8")
        assert named[2] is None or f"def {named[2]}(" in source, row


def test_the_page_is_linked_where_people_look() -> None:
    assert "](SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "security.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
