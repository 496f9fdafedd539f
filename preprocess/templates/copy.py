"""The template to train with for a model's folder: a built-in one by name, or a copy of its own with marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from dst import ChatTokenizer, TemplateError, load_tokenizer
from dst.common.suggest import nearest
from dst.errors import ConfigError
from dst.template import with_variables
from preprocess.templates.builtin import Builtin, find_builtin
from preprocess.templates.folder import FolderTemplate, read_folder_template
from preprocess.templates.marking import Marked, mark, open_names
from preprocess.templates.reference import Reference, reference_of
from shards.files import replace_file

SUFFIXES = (".jinja", ".j2")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateCopy:
    """What was found out about a folder's template. builtin: the one that renders the same texts, if there is one."""

    published: FolderTemplate
    reference: Reference
    marked: Marked
    builtin: Builtin | None

    @property
    def text(self) -> str:
        """The copy as a file, with a comment in its first line that says where it is from."""
        where = self.published.file.replace("#}", "# }")
        return f"{{# {where}, with marks around what is trained +#}}{self.marked.template.source}\n"


def copy_template(
    name: str, *, variant: str | None = None, settings: Sequence[str] = (), add_end: bool = False
) -> TemplateCopy:
    """Read, compare and mark the template of a folder or hub id.

    variant: the name of one of several templates. settings: `NAME=VALUE` for names that it leaves open. add_end: end
    each answer with the end token of the folder, if the template ends it with no token.
    Raises ConfigError or TokenizerError for a folder that cannot be used, TemplateError if no answers can be marked.
    """
    published = read_folder_template(name, variant)
    try:
        source = with_variables(published.source, _values(published, settings)) if settings else published.source
        reference = reference_of_folder(published, source, add_end=add_end)
        marked = mark(published.file, source, reference)
    except TemplateError as error:
        hint = "; --set date_string='26 Jul 2024' sets one" if "strftime_now" in str(error) else ""
        raise TemplateError(f"{published.file}: its answers cannot be marked: {error}{hint}") from None
    if published.has_tokenizer:
        ChatTokenizer(marked.template, load_tokenizer(published.folder))
    return TemplateCopy(
        published=published, reference=reference, marked=marked, builtin=None if settings else find_builtin(reference)
    )


def reference_of_folder(published: FolderTemplate, source: str, *, add_end: bool) -> Reference:
    """Raises TemplateError for a template that cannot be used for chats, or whose answers have no end token."""
    return reference_of(
        source,
        bos_token=published.bos_token,
        eos_token=published.eos_token,
        adds_begin=published.adds_begin,
        add_end=add_end,
    )


def write_copy(text: str, out: Path) -> None:
    """Raises ConfigError if the file exists or its name is not a template's."""
    if out.suffix not in SUFFIXES:
        raise ConfigError([f"--out {out}: got the ending {out.suffix!r}; expected {' or '.join(SUFFIXES)}"])
    if out.exists():
        raise ConfigError([f"--out {out}: exists already; choose another name"])
    replace_file(out, text.encode())


def _values(published: FolderTemplate, settings: Sequence[str]) -> Mapping[str, str | float]:
    known = open_names(published.file, published.source)
    values: dict[str, str | float] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or key not in known:
            names = ", ".join(sorted(known)) or "none"
            raise ConfigError(
                [f"--set {setting}: expected NAME=VALUE of a name that it leaves open: {names}{nearest(key, known)}"]
            )
        value = yaml.safe_load(text)
        values[key] = value if isinstance(value, bool | int | float) else text
    return values
