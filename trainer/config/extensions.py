"""Encoders and projectors of other packages: who may name them, and what is recorded of their code.

Rules
- A train.yaml that the user runs may name any. A folder that the user opens (an export, a run, a checkpoint) may be of
  somebody else, so an object that it names as `module:NAME` is imported only if the user names it too.
- An entry point needs no consent: whoever installed the package added it to dsvl.
- Another version of the code than the recorded one is a note, not an error: weights that fit are loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dst.common.extensions import ExtensionOrigin, name_problems, origin
from dst.errors import ConfigError
from shards.typed_json import from_json
from trainer.config.kinds import POINTS

KEY = "extensions"
"""Of dsvl.json and checkpoint.json: part of the model -> the code of its extension; left out if there is none"""


def extension_kinds(model: object) -> dict[str, str]:
    """Part of the model -> its kind, of the parts whose kind is not dsvl's.

    model: the section `model` of a configuration, as JSON or YAML has it; what is wrong in it is left out.
    """
    kinds = {}
    for part, point in POINTS.items():
        section = model.get(part) if isinstance(model, Mapping) else None
        kind = section.get("kind") if isinstance(section, Mapping) else None
        if isinstance(kind, str) and kind not in point.built_in:
            kinds[part] = kind
    return kinds


def model_extensions(model: object) -> dict[str, dict[str, Any]]:
    """What is recorded of the code of a model's extensions, for KEY. Imports them; raises ConfigError if it cannot."""
    return {
        part: asdict(origin(POINTS[part], kind, f"model.{part}.kind")) for part, kind in extension_kinds(model).items()
    }


def recorded_extensions(record: Mapping[str, Any]) -> Mapping[str, ExtensionOrigin]:
    """What `model_extensions` wrote into a record. Raises FieldError if it is damaged."""
    return from_json(Mapping[str, ExtensionOrigin], record.get(KEY, {}), KEY)


def require_consent(
    folder: Path, model: object, recorded: Mapping[str, ExtensionOrigin], allowed: Collection[str]
) -> None:
    """Before a model of a folder is built: raises ConfigError if that would import code that the user did not name.

    model: the section `model` of the folder's configuration. allowed: the extensions that the user named. Raises
    ConfigError as well if an entry point that the folder names is not installed.
    """
    problems = []
    for part, kind in extension_kinds(model).items():
        if ":" in kind and kind not in allowed:
            problems.append(
                f"{folder}: its {part} is the extension {kind}, and opening the model runs the code of that module; "
                f"if you trust it, add --allow-extension {kind} (in Python: allow_extensions=({kind!r},))"
            )
        elif part in recorded and (missing := name_problems(POINTS[part], kind, f"{folder}: model.{part}.kind")):
            problems += [f"{line}; the model was made with {kind} of {recorded[part].release}" for line in missing]
    if problems:
        raise ConfigError(problems)


def extension_notes(model: object, recorded: Mapping[str, ExtensionOrigin], where: str = "") -> list[str]:
    """A line for each part whose code is not that of the record. Imports the extensions that are recorded.

    where: what errors begin with. Raises ConfigError if one cannot be imported.
    """
    notes = []
    for part, kind in extension_kinds(model).items():
        if part not in recorded:
            continue
        before, now = recorded[part], origin(POINTS[part], kind, f"{where}model.{part}.kind")
        if before.release != now.release:
            codes = f"recorded {before.release}, installed {now.release}"
        elif before.sha256 != now.sha256:
            codes = f"recorded {before.code}, installed {now.code}"
        else:
            continue
        notes.append(f"model.{part}.kind: {kind}: {codes}")
    return notes


def differing_code(of_ranks: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Problems if the ranks of a run have different code, as nodes with different installations do.

    of_ranks: what `model_extensions` gives on each rank, for the same model.
    """
    problems = []
    for part, entry in of_ranks[0].items():
        first, *others = dict.fromkeys(ExtensionOrigin(**rank[part]).code for rank in of_ranks)
        if others:
            problems.append(
                f"model.{part}.kind: {entry['name']}: ranks have different code: {first} and {', '.join(others)}; "
                "install the same version on every node"
            )
    return problems
