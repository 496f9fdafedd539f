"""The chat template of a model's folder, where transformers looks for it.

A processor's template comes before that of its tokenizer, which may not know images:

    chat_template.jinja; chat_template.json; processor_config.json; tokenizer_config.json
    additional_chat_templates/NAME.jinja, and lists in tokenizer_config.json, for templates with names
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dst.common.suggest import nearest
from dst.errors import ConfigError, TokenizerError
from dst.tokenizer import from_hub, read_json, read_names, token_text

_CONFIGS = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
_FILES = (
    "chat_template.jinja",
    *_CONFIGS,
    "special_tokens_map.json",
    "tokenizer.json",
    "additional_chat_templates/*.jinja",
)

_DEFAULT = "default"
"""The name of a template without one, as in lists of transformers"""

_LLAMA_CLASS = re.compile(r"(Code)?(Llama|Gemma)Tokenizer(Fast)?")
"""Classes of transformers that follow `add_bos_token`, whatever tokenizer.json says"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderTemplate:
    """A chat template as it was published.

    file: where it is, in words. adds_begin: whether the folder's tokenizer puts its begin token in front of every text.
    """

    source: str
    file: str
    bos_token: str
    eos_token: str
    adds_begin: bool
    has_tokenizer: bool
    folder: Path


def read_folder_template(name: str, variant: str | None = None) -> FolderTemplate:
    """The template of a local folder or of a model of the hub. variant: the name of one of several templates.

    Raises ConfigError if there is no such folder or template, TokenizerError for a file that cannot be read.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
            raise ConfigError([f"--from {name}: no such folder; expected a model's folder, or its id on the hub"])
        try:
            folder = from_hub(name, _FILES)
        except TokenizerError as error:
            raise ConfigError([str(error).replace("tokenizer", "--from", 1)]) from None
    templates = _templates(folder)
    if not templates:
        raise ConfigError(
            [
                f"--from {name}: it has no chat template; expected {', '.join(_FILES[:4])} with one. A base model has "
                "none: choose a built-in one (docs/templates.md)"
            ]
        )
    chosen = variant or (_DEFAULT if _DEFAULT in templates else next(iter(templates)))
    if chosen not in templates or (variant is None and _DEFAULT not in templates and len(templates) > 1):
        hint = nearest(variant, templates) if variant else ""
        raise ConfigError(
            [
                f"--from {name}: got --name {variant or 'none'}; expected one of its templates: "
                f"{', '.join(sorted(templates))}{hint}"
            ]
        )
    file, source = templates[chosen]
    names = read_names(folder)
    return FolderTemplate(
        source=source,
        file=f"{folder / file}" + (f", template {chosen}" if len(templates) > 1 else ""),
        bos_token=token_text(names.get("bos_token")),
        eos_token=token_text(names.get("eos_token")),
        adds_begin=adds_begin_token(folder, names),
        has_tokenizer=(folder / "tokenizer.json").is_file(),
        folder=folder,
    )


def adds_begin_token(folder: Path, names: Mapping[str, Any]) -> bool:
    """Whether transformers puts the begin token in front of every text. names: of tokenizer_config.json."""
    bos, chosen = token_text(names.get("bos_token")), names.get("add_bos_token")
    if not bos:
        return False
    if _LLAMA_CLASS.fullmatch(str(names.get("tokenizer_class"))) and isinstance(chosen, bool):
        return chosen
    path = folder / "tokenizer.json"
    if not path.is_file():
        return chosen is True
    from dst.tokenizer import load_tokenizer_file

    return load_tokenizer_file(path).encode("a").tokens[:1] == [bos]


def _templates(folder: Path) -> dict[str, tuple[str, str]]:
    """Name -> file and source. What comes first in the order of the files wins."""
    templates: dict[str, tuple[str, str]] = {}
    paths = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for path in paths:
        if path.is_file():
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"{path}: cannot be read ({error})") from None
            name = _DEFAULT if path.parent == folder else path.stem
            templates[name] = (path.relative_to(folder).as_posix(), source)
    for file in _CONFIGS:
        value = read_json(folder / file, missing_ok=True).get("chat_template")
        if isinstance(value, str):
            templates.setdefault(_DEFAULT, (file, value))
        elif isinstance(value, dict | list):
            named = value.items() if isinstance(value, dict) else map(_named, value)
            for key, text in named:
                if not (isinstance(key, str) and isinstance(text, str)):
                    raise TokenizerError(
                        f"{folder / file}: chat_template has {json.dumps([key, text])[:80]}; expected a name and a "
                        "template"
                    )
                templates.setdefault(key, (file, text))
    return templates


def _named(entry: object) -> tuple[object, object]:
    return (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, entry)
