"""Write the reference pages from texts in the code: blend.md, rejects.md, errors.md, and a table of reading.md.

    python tools/make_docs.py

The texts are those under the fields of preprocess/blend/config.py, in preprocess/conversation.py, in
shards/loader/fields.py, and in the docstrings of the four errors.py.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dst.errors
import preprocess.errors
import shards.errors
import trainer.errors
from dst.common.config import field_docs
from dst.errors import DsvlError
from preprocess.adapters.registry import ADAPTERS
from preprocess.blend.config import Blend, Dataset, Limits, ShardSize, Split
from preprocess.blend.evaluation_sets import EvaluationSet
from preprocess.blend.fetch import Fetch
from preprocess.conversation import NOTES, REASONS
from preprocess.filters.rules import FieldRule, Filter
from preprocess.images.prepare import ImagePolicy
from shards.loader.fields import FIELDS, BatchFields
from trainer.config.defaults import dataclass_in
from trainer.config.run import TrainConfig

DOCS = Path(__file__).resolve().parent.parent / "docs"


EDITORS = (
    "Editors with a YAML language server complete and check the file by its JSON schema: run `{program} schema > "
    "{name}.schema.json`, and make this the file's first line: `# yaml-language-server: $schema={name}.schema.json`."
)


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """File name -> content."""
    return {
        "blend.md": blend_page(),
        "train-yaml.md": train_page(),
        "rejects.md": rejects_page(),
        "errors.md": errors_page(),
        "reading.md": reading_page(),
    }


def blend_page() -> str:
    parts = [
        "# blend.yaml",
        "Which datasets, how much of each, with which template, tokenizer and image policy. Unknown keys and wrong "
        "values are reported before anything is read, all at once, with the nearest known name. `--set a.b=value` "
        "changes any of them from the command line; a dataset goes by its name: `--set datasets.llava.concat=2`. "
        "Relative paths start at the file's own folder.",
        EDITORS.format(program="dsvl-prep", name="blend"),
        _table(Blend, skip=("datasets", "decontaminate", "image", "limits", "split", "shard", "fetch")),
    ]
    sections = {"image": ImagePolicy, "limits": Limits, "split": Split, "shard": ShardSize, "fetch": Fetch}
    for title, cls in sections.items():
        parts += [f"## {title}:", _table(cls)]
    parts += [
        "## decontaminate:",
        "A list of evaluation sets, each with `images`, `questions` or both. Training records that show one of the "
        "images or repeat one of the questions become rejects; [duplicates.md](duplicates.md) has the details.",
        _table(EvaluationSet),
        "## datasets:",
        "A list, each with exactly one of `samples`, `epochs` and `weight`. Amounts decide how often an epoch of the "
        "blend draws from a dataset; everything is compiled, so a later change takes seconds.",
        _table(Dataset),
        "## datasets.*.filter:",
        "A record is kept if every rule holds; [filters-and-splits.md](filters-and-splits.md) explains them. All but "
        "`fields` and `language` are ranges: `{min: 1, max: 500}`, with one bound or both.",
        _table(Filter),
        "### fields:",
        "The name of a key -> what its value may be.",
        _table(FieldRule),
        "## Adapter options",
        "\n".join(
            ["| option | default | | adapters |", "|---|---|---|---|"]
            + [
                f"| `{key}` | {default} | {text} | {', '.join(names)} |"
                for (key, default, text), names in sorted(_adapter_options().items())
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def train_page() -> str:
    parts = [
        "# train.yaml",
        "Every setting of `dsvl-train run`; `dsvl-train config` prints them as a file. Unknown keys and wrong values "
        "are reported before a model is loaded, all at once, with the nearest known name. `--set a.b=value` changes "
        "any of them from the command line: `--set zero.stage=3`. "
        "[Training](training.md) explains how they work together.",
        EDITORS.format(program="dsvl-train", name="train"),
        *_sections(TrainConfig, ""),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(cls: Any, path: str) -> Iterator[str]:
    """The table of a config class, and below it those of its sections."""
    hints = typing.get_type_hints(cls)
    sections = {name: section for name, hint in hints.items() if (section := dataclass_in(hint))}
    plain = [field.name for field in dataclasses.fields(cls) if field.name not in sections]
    if plain:
        yield _table(cls, skip=tuple(sections))
    docs = field_docs(cls)
    for name, section in sections.items():
        inner = f"{path}{name}"
        yield f"## {inner}:"
        yield docs[name]
        yield from _sections(section, f"{inner}.")


def rejects_page() -> str:
    parts = [
        "# rejects.jsonl",
        "Every record that is not part of a sample is one line: `dataset`, `reason`, `file`, `record` (the record's "
        "id, or its number in the file) and `detail` (what was got and expected). For every dataset, records read = "
        "records in samples + rejects. Above `limits.max_reject_share` the build fails; finished work is kept, so a "
        "second run with another limit or corrected data is quick.",
        _name_table("reason", REASONS),
        "## worker_died",
        "A worker process can die in a library that crashes on the data of a record, or because memory runs out. Its "
        "task is then tried again, alone, once all others are done, so that memory is not short because of them. A "
        "record at which workers died twice is a reject, and the build carries on without it; with `share`, all "
        "records of the sample that shows the image are. The detail names the cause, and the files in the build's "
        "cache to remove so that the record is tried again. More than 10 deaths in one run end the build with one "
        "line; the next run does not repeat them.",
        "The same holds while annotations are read. The reject then names the record by its number in the file, from "
        "0, since its id may not be known. After the first death, records are parsed one at a time, and one at which "
        "workers died twice is not parsed. Parquet has no single rows to leave out: where pyarrow crashes, the rest of "
        "the row group is rejects. If workers die where no record is read, such as while the file is opened, or if "
        "leaving the record out fails as well (a row of CSV has to be parsed to find its end), one line names the file "
        "and ends the build. An adapter of another package has all this if it reads its files with dsvl's helpers.",
        "## Notes",
        "A note is a change that dsvl or the template made to a record that became part of a sample. The build counts "
        "notes for each dataset; `render` and `inspect` show them at their conversation or sample.",
        _name_table("note", NOTES),
    ]
    return "\n\n".join(parts) + "\n"


def _name_table(title: str, names: Mapping[str, str]) -> str:
    return "\n".join([f"| {title} | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in names.items())])


def reading_page() -> str:
    """The page as it is, with the table of a batch's tensors between its two marks."""
    before, mark, rest = (DOCS / "reading.md").read_text(encoding="utf-8").partition("<!-- batch fields -->\n")
    _, end, after = rest.partition("<!-- end of batch fields -->\n")
    if not mark or not end:
        raise ValueError("docs/reading.md: the marks around the table of batch fields are missing; put them back")
    docs = attribute_docs(BatchFields)
    rows = ["| tensor | type | shape | meaning |", "|---|---|---|---|"]
    for name, tensor in FIELDS.items():
        shape = ", ".join(map(str, tensor.shape))
        rows.append(f"| `{name}` | {tensor.dtype.__name__} | `[{shape}]` | {docs[name]} |")
    return before + mark + "\n".join(rows) + "\n" + end + after


def errors_page() -> str:
    classes = list(error_classes())
    parts = [
        "# Errors",
        "A command that fails prints one line per problem to stderr, each with `error:` in front, and ends with an "
        "exit code. A traceback is a bug of this project.",
        "| exit code | meaning |\n|---|---|\n"
        "| 0 | the work is done, or a training run was stopped by a signal and saved |\n"
        "| 1 | what the command works on is missing or damaged, the work failed, or Ctrl-C stopped it |\n"
        "| 2 | what was asked for cannot be done: usage, configuration, location, template, tokenizer, or a package "
        "that is not installed; no work was started |",
        "In Python, all errors derive from `DsvlError`: `except shards.DsvlError` catches every one of them. Its "
        "`exit_code` is the command's, and its `lines()` are the printed lines.",
        "| error | exit code | raised when |\n|---|---|---|\n"
        + "\n".join(
            f"| [{cls.__name__}](#{cls.__name__.lower()}) | {cls.exit_code} | {_described(cls)[0]} |" for cls in classes
        ),
    ]
    for cls in classes:
        summary, details, example, step = _described(cls)
        parts += [f"## {cls.__name__}", " ".join([summary, *details]), f"{_imports(cls)}, exit code {cls.exit_code}."]
        parts += [f"Example: `{example}`", f"What to do: {step}"]
    return "\n\n".join(parts) + "\n"


def attribute_docs(cls: type) -> dict[str, str]:
    """Field name -> the sentence under it, of a class that is no config class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        statement.target.id: " ".join(str(following.value.value).split())
        for statement, following in zip(body.body, body.body[1:], strict=False)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }


def error_classes() -> Iterator[type[DsvlError]]:
    """Every error of the four packages except the base, in the order of the files."""
    for module in (dst.errors, shards.errors, preprocess.errors, trainer.errors):
        for cls in vars(module).values():
            own = inspect.isclass(cls) and cls.__module__ == module.__name__
            if own and issubclass(cls, DsvlError) and cls is not DsvlError:
                yield cls


def _described(cls: type) -> tuple[str, list[str], str, str]:
    """The docstring's first paragraph, further ones, its example, and what to do."""
    text = inspect.getdoc(cls) or ""
    body, example_mark, rest = text.partition("\nExample: ")
    example, step_mark, step = rest.partition("\nWhat to do: ")
    if not example_mark or not step_mark:
        raise ValueError(f"{cls.__module__}.{cls.__name__}: its docstring lacks an Example: or a What to do: line")
    summary, *details = (" ".join(paragraph.split()) for paragraph in body.strip().split("\n\n"))
    return summary, details, " ".join(example.split()), " ".join(step.split())


def _imports(cls: type) -> str:
    packages = [
        package.__name__
        for package in (dst, shards, preprocess, trainer)
        if getattr(package, cls.__name__, None) is cls
    ]
    return (
        " or ".join(f"`{name}.{cls.__name__}`" for name in packages) or f"`{cls.__module__}.{cls.__name__}`, internal"
    )


def _adapter_options() -> dict[tuple[str, str, str], list[str]]:
    """(name, default, text) -> the adapters that have this option."""
    users: dict[tuple[str, str, str], list[str]] = {}
    for name, adapter in ADAPTERS.items():
        for key, option in adapter.options.items():
            row = (key, _cell(option.default), f"{_choices(option.choices)}{option.help}")
            users.setdefault(row, []).append(name)
    return users


def _table(cls: Any, skip: tuple[str, ...] = ()) -> str:
    docs = field_docs(cls)
    rows = ["| key | default | |", "|---|---|---|"]
    for field in dataclasses.fields(cls):
        if field.name not in skip:
            rows.append(f"| `{field.name}` | {_default(field)} | {docs[field.name]} |")
    return "\n".join(rows)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return _cell(field.default)
    return "required" if field.default_factory is dataclasses.MISSING else ""


def _cell(value: Any) -> str:
    if value is None or value in ((), ""):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"{len(value)} built in" if isinstance(value, list | tuple) else f"`{value}`"


def _choices(values: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, values))}) " if values else ""


if __name__ == "__main__":
    main()
