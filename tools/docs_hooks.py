"""What mkdocs.yml needs beyond docs/: pages that are elsewhere in the repository, and links that work in both places.

A link goes by where its page is in the repository, as on a code host. In the site it goes to the page that the file
became. A link to a file that is not part of the site becomes its text; whether that file exists is for
tests/test_docs.py to say.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "shards/FORMAT.md": "format.md",
}
"""Path in the repository -> path in the site"""
_HERE = {site: path for path, site in ELSEWHERE.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, site in ELSEWHERE.items():
        files.append(File.generated(config, site, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    known = {file.src_uri for file in files}
    parts = _CODE.split(markdown)  # code is every second part
    parts[::2] = [_LINK.sub(lambda match: _link(match, uri, known), part) for part in parts[::2]]
    return "".join(parts)


def _link(match: re.Match[str], uri: str, known: set[str]) -> str:
    """The link as the site needs it. `uri`: the page's path in the site; `known`: all of them."""
    mark, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    if "://" in target:
        return match[0]
    page = _HERE.get(uri, f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
    site = ELSEWHERE.get(path, path.removeprefix("docs/"))
    if site in known:
        return f"{mark}[{text}]({posixpath.relpath(site, posixpath.dirname(uri) or '.')}{anchor})"
    return text if (ROOT / path).exists() and not mark else match[0]
