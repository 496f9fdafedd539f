"""The language of a text, by py3langid: a naive Bayes model of about 100 languages that comes with the package.

Rule: the answer depends only on the text and on the package's version. A text with too few letters has no language that
can be detected, and is never guessed at.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from dst.common.suggest import nearest

PACKAGE = "py3langid"
UNDETERMINED = "und"  # ISO 639-2
_FEWEST_LETTERS = 20
_MOST_CHARACTERS = 1000  # more takes longer, up to a millisecond for each 1000, and changes little


def language_of(text: str) -> str:
    """The ISO 639-1 code of the text's language, or `und` for a text of fewer than 20 letters."""
    start = text[:_MOST_CHARACTERS]
    if sum(map(str.isalpha, start)) < _FEWEST_LETTERS:
        return UNDETERMINED
    return str(_package().classify(start)[0])


def detector() -> str:
    """Name and version of the package, which decide the languages."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def code_problems(codes: Sequence[str], where: str) -> Iterator[str]:
    """What is wrong with codes of languages, one line each."""
    if find_spec(PACKAGE) is None:
        yield f"{where}: {PACKAGE} is not installed; pip install 'dsvl[language]', or remove the rule"
        return
    known = [*(code for code, _ in _package().rank("text")), UNDETERMINED]
    for code in codes:
        if code not in known:
            hint = nearest(code, known)
            yield f"{where}: got {code!r}; expected codes such as en, de or zh, or {UNDETERMINED}{hint}"


def _package() -> Any:
    return importlib.import_module(PACKAGE)
