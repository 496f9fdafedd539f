"""How pages for people are rendered: texts from data are escaped, and an undefined name is an error.

A page is one file that needs no network: styles and images are inside it. No script of data runs: the content security
policy allows only scripts whose digest it names, and the template escapes texts. Pages extend `base.html.jinja`.

    page_environment(Path(__file__).parent).get_template("overlap.html.jinja").render(policy=page_policy(), ...)
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dst.common.terminal_text import visible

_PAGES = Path(__file__).parent / "pages"
SHARED_STYLE = _PAGES / "page.css"
"""Colours and type of all pages; pages of one file have it inside"""


def page_environment(folder: Path) -> Environment:
    """For the templates of pages in a folder, and the base of all. The filter `shown` is how a page shows a text."""
    environment = Environment(
        loader=FileSystemLoader([folder, _PAGES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment


def page_policy(*scripts: str) -> str:
    """The content security policy of a page of one file that runs exactly these inline scripts."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return policy + ("; script-src " + " ".join(f"'sha256-{digest}'" for digest in digests) if digests else "")


def shown(text: object, limit: int | None = None) -> str:
    """A text of data as pages show it: control characters written out, the end cut after `limit` characters."""
    whole = str(text)
    if limit is None or len(whole) <= limit:
        return visible(whole)
    return f"{visible(whole[:limit])}… ({len(whole) - limit:,} more characters)"
