"""A first blend file for the datasets that were found, with a comment for every setting."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from dst.common.config import field_docs
from dst.common.terminal_text import visible
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.config import Blend, Dataset, Limits, Split
from preprocess.blend.discover import Discovery, Found, discover
from preprocess.blend.guess_names import Names
from preprocess.blend.own_files import CHAT
from preprocess.errors import ConfigError
from preprocess.templates.proposal import matching_builtin
from shards.files import replace_file

_MAX_FILES = 8
"""How many annotation files are listed by name; more are written as patterns"""

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_-]+")


def write_blend(root: Path, out: Path, tokenizer: str | None = None) -> Discovery:
    """Write a commented blend file for the datasets found below a folder; returns what was found.

    tokenizer: its folder or hub id. The template is then the built-in one that renders what its chat template does.
    Raises ConfigError if the root is not a folder, nothing is found, or the file exists already.
    """
    if out.exists():
        raise ConfigError([f"--out {out}: exists already; choose another name, so that your settings are not lost"])
    found = discover(root)
    replace_file(out, _blend_text(found, out.parent, tokenizer).encode())
    return found


def _blend_text(found: Discovery, base: Path, tokenizer: str | None) -> str:
    blend_docs, dataset_docs = field_docs(Blend), field_docs(Dataset)
    lines = [
        "# Which datasets, how much of each, with which template and tokenizer.",
        "# A key that is not here has its default; docs/blend.md lists all keys.",
        "",
        f"# {blend_docs['tokenizer']}",
        f"tokenizer: {_scalar(_path_or_id(tokenizer, base)) if tokenizer else 'path/of/your/tokenizer'}",
        f"# {blend_docs['template']}",
        *_template(tokenizer),
        f"# {blend_docs['image_tokens']}",
        f"image_tokens: {Blend.__dataclass_fields__['image_tokens'].default}",
        "image:",
        "  store: original  # resized stores small JPEGs, which load about ten times faster; then set size and fit",
        "  check: decode    # header is faster, for data that an earlier build checked",
    ]
    for key, cls in (("limits", Limits), ("split", Split)):
        lines.append(f"{key}:")
        for name, text in field_docs(cls).items():
            value = 0.01 if name == "eval" else cls.__dataclass_fields__[name].default
            if value is not None:  # else the line would only say that nothing is set
                lines += [f"  # {text}", f"  {name}: {value}"]
    lines += ["", "# `dsvl-prep adapters` lists each adapter's options.", "datasets:"]
    used: set[str] = set()
    for dataset in found.datasets:
        name = _free_name(dataset, used)
        lines += ["", *_entry(dataset, name, base)]
        lines.append("    samples: all" + (f"  # {dataset_docs['samples']}" if len(used) == 1 else ""))
    if found.unread:
        lines += ["", "# Found, and not part of this blend:"]
        lines += [f"#   {_comment(one.path)}{_more(one.count)}: {_comment(one.reason)}" for one in found.unread]
    return "\n".join(lines) + "\n"


def _path_or_id(tokenizer: str, base: Path) -> str:
    return os.path.relpath(tokenizer, base) if Path(tokenizer).exists() else tokenizer


def _template(tokenizer: str | None) -> list[str]:
    """The template that the tokenizer's folder comes with, if a built-in one renders the same texts."""
    builtin = matching_builtin(tokenizer) if tokenizer else None
    if builtin is not None:
        variables = _mapping({name: _scalar(text) for name, text in builtin.variables.items()})
        return [f"template: {builtin.name}", *([f"variables: {variables}"] if builtin.variables else [])]
    default = f"template: {Blend.__dataclass_fields__['template'].default}"
    return [
        default + (f"  # that of the tokenizer: dsvl-prep template --from {_comment(tokenizer)}" if tokenizer else "")
    ]


def _entry(dataset: Found, name: str, base: Path) -> list[str]:
    adapter, folder = ADAPTERS[dataset.adapter], dataset.folder
    lines = [f"  # {adapter.layout}", f"  # Licence: {adapter.licence}"] if dataset.adapter != CHAT else []
    lines += [f"  # {_comment(note)}" for note in dataset.notes]
    lines += [
        f"  - name: {name}",
        f"    adapter: {dataset.adapter}",
        f"    root: {_scalar(os.path.relpath(folder, base))}",
    ]
    if dataset.annotations:
        lines.append(f"    annotations: {_patterns(dataset.annotations, folder)}")
    if dataset.images:
        lines.append(f"    images: {_patterns(dataset.images, folder)}")
    if dataset.prompt:
        lines.append(f"    prompt: {_scalar(dataset.prompt)}")
    return [*lines, *_names(dataset.names)]


def _names(names: Names) -> list[str]:
    """The settings `fields` and `roles`; a comment to fill in where only a person can say who speaks."""
    lines = [f"    fields: {_mapping(names.fields)}"] if names.fields else []
    if names.unknown_roles:
        sides = ("user", "assistant")
        unknown = {name: sides[index % 2] for index, name in enumerate(names.unknown_roles)}
        lines.append(
            f"    # roles: {_mapping({**names.roles, **unknown})}  # correct who is who, and remove the first #"
        )
    elif names.roles:
        lines.append(f"    roles: {_mapping(names.roles)}")
    return lines


def _mapping(names: Mapping[str, str]) -> str:
    return f"{{{', '.join(f'{_scalar(theirs)}: {ours}' for theirs, ours in names.items())}}}"


def _patterns(paths: Sequence[Path], folder: Path) -> str:
    names = [os.path.relpath(path, folder) for path in paths]
    if len(names) > _MAX_FILES:
        names = list(dict.fromkeys(re.sub(r"\d+", "*", re.sub(r"([*?[])", r"[\1]", name)) for name in names))
    return f"[{', '.join(map(_scalar, names))}]"


def _free_name(dataset: Found, used: set[str]) -> str:
    """The adapter's name, or for one's own files that of the file or, if there are several, of the folder."""
    folder = dataset.folder.resolve().name
    own = dataset.annotations[0].stem if len(dataset.annotations) == 1 else folder
    text = own if dataset.adapter == CHAT else dataset.adapter
    start = _plain(text)
    if start in used and dataset.adapter == CHAT:
        start = _plain(f"{folder}-{own}")
    name, number = start, 2
    while name in used:
        name, number = f"{start}-{number}", number + 1
    used.add(name)
    return name


def _plain(text: str) -> str:
    return _NOT_IN_A_NAME.sub("-", text.lower()).strip("-_")[:36] or CHAT


def _more(count: int) -> str:
    return f" and {count - 1} more files like it" if count > 1 else ""


def _comment(text: object) -> str:
    """The text in one line, without characters that YAML forbids: a line break would end the comment."""
    return " ".join(visible(text).split())


def _scalar(text: str) -> str:
    """The text in quotes: YAML reads a folder name such as 2014 or yes as another type."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=2**30).rstrip("\n")
