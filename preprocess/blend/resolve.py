"""Check the configuration, and find its files: everything about a build that does not need the data itself.

Rule: all problems are reported at once, each with its place; nothing is written.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dst import (
    BUILTIN,
    ChatTokenizer,
    Template,
    TemplateError,
    TextTokenizer,
    TokenizerError,
    load_template,
    load_tokenizer,
)
from dst.common.extensions import ExtensionOrigin
from dst.common.utf8_names import name_problem
from preprocess.adapters.base import Request
from preprocess.adapters.lookup import adapter_origin
from preprocess.blend.config import Blend, Dataset
from preprocess.blend.evaluation_sets import EvaluationInputs, find_evaluation_sets
from preprocess.blend.inputs import Inputs, find_inputs
from preprocess.blend.load import load_blend
from preprocess.errors import ConfigError
from preprocess.images.fetched import is_fetched_folder
from preprocess.images.prepare import even_count
from preprocess.templates.proposal import template_note


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A blend with its files, tokenizer and templates."""

    blend: Blend
    inputs: Mapping[str, Inputs]
    tokenizer: TextTokenizer
    templates: Mapping[str, Template]
    """dataset name -> template; "" -> the blend's own."""
    extensions: Mapping[str, ExtensionOrigin]
    """dataset name -> the code of its adapter, if that is an extension."""
    evaluation_sets: tuple[EvaluationInputs, ...]
    """Those of `decontaminate`."""
    fetched: Path
    """The folder of images that were downloaded by their URLs; it need not exist."""
    notes: tuple[str, ...]
    """About tokenizer and template"""

    def stores(self, dataset: str) -> tuple[Path, ...]:
        """The dataset's image stores, and last the one of images by URL, if there is one."""
        fetched = (self.fetched,) if is_fetched_folder(self.fetched) else ()
        return (*self.inputs[dataset].images, *fetched)

    def template(self, dataset: str) -> Template:
        return self.templates.get(dataset, self.templates[""])


def prepare(path: Path, settings: Sequence[str] = ()) -> Prepared:
    """Check everything that can be checked without reading data. Raises ConfigError with all problems."""
    blend = load_blend(path, settings)
    base = path.absolute().parent
    problems = [*filter(None, [name_problem(base)]), *engine_problems(blend.engine)]
    inputs: dict[str, Inputs] = {}
    try:
        inputs.update(find_inputs(blend, base))
    except ConfigError as error:
        problems += error.problems
    evaluation_sets: tuple[EvaluationInputs, ...] = ()
    try:
        evaluation_sets = find_evaluation_sets(blend.decontaminate, base)
    except ConfigError as error:
        problems += error.problems
    templates: dict[str, Template] = {}
    own = [(f"datasets.{index} ({one.name}).template", one) for index, one in enumerate(blend.datasets)]
    for where, dataset in [("template", None), *((where, one) for where, one in own if has_own_template(one))]:
        try:
            templates["" if dataset is None else dataset.name] = find_template(blend, dataset, base)
        except TemplateError as error:
            problems.append(f"{where}: {error}")
    try:
        tokenizer = load_tokenizer(_next_to(base, blend.tokenizer), blend.add_tokens)
    except TokenizerError as error:
        problems.append(f"tokenizer: {error}")
        raise ConfigError([f"{path.name}: {problem}" for problem in problems]) from None
    for name, template_text in templates.items():
        try:
            ChatTokenizer(template_text, tokenizer)
        except (TemplateError, TokenizerError) as error:
            where = "template" if not name else f"dataset {name}: template"
            problems.append(f"{where}: {error}")
    if problems:
        raise ConfigError([f"{path.name}: {problem}" for problem in problems])
    extensions = {
        dataset.name: found for dataset in blend.datasets if (found := adapter_origin(dataset.adapter)) is not None
    }
    return Prepared(
        blend=blend,
        inputs=inputs,
        tokenizer=tokenizer,
        templates=templates,
        extensions=extensions,
        evaluation_sets=evaluation_sets,
        fetched=fetched_folder(blend, base),
        notes=_notes(_next_to(base, blend.tokenizer), tokenizer, templates[""]),
    )


def _notes(name: str, tokenizer: TextTokenizer, template: Template) -> tuple[str, ...]:
    new = ", ".join(f"{token} (id {index})" for token, index in tokenizer.new_tokens.items())
    notes = [f"tokenizer {name}: the build adds to it: {new}"] if new else []
    about_template = template_note(name, template)
    return tuple([*notes, about_template] if about_template else notes)


def has_own_template(dataset: Dataset) -> bool:
    return dataset.template is not None or dataset.variables is not None


def find_template(blend: Blend, dataset: Dataset | None, base: Path) -> Template:
    """The template of a dataset, or the blend's (None); a file is next to the blend file. Raises TemplateError."""
    name, variables = blend.template, blend.variables
    if dataset is not None and has_own_template(dataset):
        name, variables = dataset.template or name, dataset.variables or {}
    return load_template(name if name in BUILTIN else _next_to(base, name), variables)


def request_of(blend: Blend, dataset: Dataset, inputs: Inputs) -> Request:
    """The input of the dataset's adapter."""
    return Request(
        root=inputs.root,
        annotations=inputs.annotations,
        images=inputs.images,
        options=dataset.all_options,
        seed=blend.seed,
        max_images=blend.limits.max_images,
        keys=dataset.all_keys,
        roles=dataset.roles,
        filter_fields=tuple(dataset.filter.fields) if dataset.filter else (),
        frames=even_count(blend.policy_for(dataset).frames),
    )


def fetched_folder(blend: Blend, base: Path) -> Path:
    """Where images are that records name by URL; it need not exist. base: the blend file's folder."""
    return base / os.path.expanduser(blend.fetch.folder)


def engine_problems(engine: str) -> list[str]:
    """Why an engine cannot be used here; it is not started."""
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        return ["engine: ray is not installed; pip install 'dsvl[ray]', or set engine: process"]
    address = os.environ.get("RAY_ADDRESS", "")
    if engine == "ray" and address.startswith("ray://"):
        return [
            f"RAY_ADDRESS={address}: builds do not run through Ray's client; run the command on a node of the cluster "
            "with RAY_ADDRESS=auto, or send it there by `ray job submit`"
        ]
    return []


def _next_to(base: Path, name: str) -> str:
    """The path next to the blend file if it exists there; otherwise the name, unchanged."""
    path = base / os.path.expanduser(name)
    return str(path) if path.exists() else name
