"""Reading a blend file: everything that can be checked without reading data is checked here, all problems at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dst.common.config import build
from dst.common.suggest import nearest
from dst.common.yaml_files import override, read_yaml
from preprocess.adapters.base import Adapter, Option
from preprocess.adapters.lookup import find_adapter
from preprocess.blend.config import IGNORE, Blend, Dataset
from preprocess.blend.evaluation_sets import check_evaluation_sets
from preprocess.blend.tile_settings import check_tiles
from preprocess.errors import ConfigError
from preprocess.filters.rules import filter_problems

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def load_blend(path: Path, settings: Sequence[str] = ()) -> Blend:
    """Read and check a blend file with `a.b=value` settings applied. Raises ConfigError with all problems."""
    tree = read_yaml(path)
    override(tree, settings)
    blend, problems = build(Blend, tree, check=check_blend)
    if problems or blend is None:
        raise ConfigError([f"{path.name}: {problem}" for problem in problems])
    return blend


def check_blend(blend: Blend) -> list[str]:
    """Problems between keys, one line each."""
    problems: list[str] = []

    def want(holds: bool, where: str, got: object, expected: str) -> None:
        if not holds:
            problems.append(f"{where}: got {got}; expected {expected}")

    names = [dataset.name for dataset in blend.datasets]
    weighted = [dataset for dataset in blend.datasets if dataset.weight is not None]
    for index, dataset in enumerate(blend.datasets):
        where = f"datasets.{index} ({dataset.name})"
        want(bool(_NAME.fullmatch(dataset.name)), f"{where}.name", dataset.name, "1 to 40 of a-z, 0-9, _ and -")
        want(names.count(dataset.name) == 1, f"{where}.name", f"{dataset.name} twice", "a name of its own")
        want(dataset.prompt is None or bool(dataset.prompt.strip()), f"{where}.prompt", "a blank text", "a text")
        amounts = {key: getattr(dataset, key) for key in ("samples", "epochs", "weight")}
        given = {key: amount for key, amount in amounts.items() if amount is not None}
        got = " and ".join(given) or "no amount"
        if dataset.split == "eval":
            expected = "no amount, or samples: all, since split: eval keeps the dataset out of training"
            want(given in ({}, {"samples": "all"}), where, got, expected)
        else:
            want(len(given) == 1, where, got, "exactly one of samples, epochs and weight")
        want(
            dataset.share == 1 or dataset.concat == 1,
            where,
            f"share: {dataset.share} and concat: {dataset.concat}",
            "one of them: share keeps records apart, concat lets later ones see earlier ones",
        )
        if dataset.filter is not None:
            problems += filter_problems(dataset.filter, f"{where}.filter")
        try:
            adapter = find_adapter(dataset.adapter, f"{where}.adapter")
            problems += _check_options(dataset, adapter.options, where)
            problems += _check_keys(dataset, adapter, where)
        except ConfigError as error:
            problems += error.problems
    problems += check_tiles(blend)
    problems += check_evaluation_sets(blend.decontaminate)
    if weighted and blend.total is None:
        problems.append(f"total: missing; datasets with a weight ({weighted[0].name}) share out a total")
    if blend.total is not None:
        want(bool(weighted), "total", blend.total, "no total, since no dataset has a weight")
    return problems


def _check_options(dataset: Dataset, options: Mapping[str, Option], where: str) -> list[str]:
    problems = []
    for name, value in dataset.options.items():
        option = options.get(name)
        if option is None:
            known = ", ".join(options) or "none"
            hint = nearest(name, options) or f"; {dataset.adapter} has: {known}"
            problems.append(f"{where}.options.{name}: unknown option{hint}")
        elif option.choices and value not in option.choices:
            choices = ", ".join(map(str, option.choices))
            problems.append(
                f"{where}.options.{name}: got {value!r}; expected one of {choices}{nearest(str(value), option.choices)}"
            )
        elif not option.choices and not _same_type(value, option.default):
            expected = (
                "a list of texts, none of them blank" if _is_list(option.default) else f"the kind of {option.default!r}"
            )
            problems.append(f"{where}.options.{name}: got {value!r}; expected {expected}")
    return problems


def _check_keys(dataset: Dataset, adapter: Adapter, where: str) -> list[str]:
    """Problems of `fields` and `keys`: each name once, and only names that the adapter reads."""
    problems = [
        f"{where}.keys.{name}: is in fields too; expected it once" for name in dataset.keys if name in dataset.fields
    ]
    for setting, names in (("fields", dataset.fields), ("keys", dataset.keys)):
        if names and not adapter.keys:
            problems.append(f"{where}.{setting}: adapter {dataset.adapter} does not map keys; remove it")
            continue
        for name, ours in names.items():
            if ours not in adapter.keys and (setting, ours) != ("keys", IGNORE):
                known = ", ".join(sorted(adapter.keys))
                other = f" {IGNORE}, to leave it out, or" if setting == "keys" else ""
                hint = nearest(ours, [*adapter.keys, *([IGNORE] if other else [])]) or f": {known}"
                if ours == IGNORE:
                    hint = f"; to leave {name} out, write it into `keys`"
                expected = f"expected{other} a key that {dataset.adapter} reads"
                problems.append(f"{where}.{setting}.{name}: got {ours}; {expected}{hint}")
    if dataset.roles and adapter.keys and "role" not in adapter.keys:
        problems.append(f"{where}.roles: adapter {dataset.adapter} reads no names of roles; remove it")
    return problems


def _same_type(value: object, default: object) -> bool:
    if _is_list(default):
        return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item.strip() for item in value)
    return type(value) is type(default)


def _is_list(default: object) -> bool:
    return isinstance(default, Sequence) and not isinstance(default, str)
