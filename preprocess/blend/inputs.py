"""The files of each dataset of a blend: annotations and image stores, found on disk or behind a URL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dst.common.utf8_names import name_problem
from preprocess.blend.config import Blend, Dataset
from preprocess.blend.layouts import find_layout, matching, own_annotations
from preprocess.containers.marks import may_hold_images
from preprocess.containers.remote_path import input_path, is_remote, listed_once
from preprocess.containers.remote_requests import is_web
from preprocess.errors import ConfigError
from shards.errors import LocationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A dataset's files. absent: the adapter's annotation patterns that matched nothing."""

    root: Path
    annotations: tuple[Path, ...]
    images: tuple[Path, ...]
    absent: tuple[str, ...] = ()


def find_inputs(blend: Blend, base: Path, *, need_images: bool = True) -> dict[str, Inputs]:
    """The files of every dataset; relative paths start at `base`. Raises ConfigError with all that is missing.

    A root may be a URL, and so may annotations and images below a local root. A bucket or host that fails to answer is
    one problem, and is not asked for the datasets that follow.

    need_images: False if no image is opened, so that none of the adapter's own image locations has to exist.
    """
    inputs: dict[str, Inputs] = {}
    problems: list[str] = []
    failed: set[str] = set()
    for index, dataset in enumerate(blend.datasets):
        where = f"datasets.{index} ({dataset.name})"
        try:
            if not failed.isdisjoint(_servers(dataset)):  # each would take as long, and say the same
                continue
            root = input_path(base, os.path.expanduser(dataset.root))
            if root.is_dir():
                with listed_once():
                    inputs[dataset.name], own_problems = _files_of(dataset, root, where, need_images=need_images)
                problems += own_problems
            else:
                problems.append(
                    f"{where}.root: {_no_folder(root)}; expected the folder that holds {dataset.spec.layout}"
                )
        except (LocationError, ValueError) as error:
            problems.append(f"{where}: {error}")
        except OSError as error:  # of a URL that does not answer
            problems.append(f"{where}: {error.filename}: {error.strerror}")
            failed |= _servers(dataset) & {input_path(base, str(error.filename)).anchor}
    if problems:
        raise ConfigError(problems)
    return inputs


def _files_of(dataset: Dataset, root: Path, where: str, *, need_images: bool) -> tuple[Inputs, list[str]]:
    """The files of one dataset, and what is missing. Raises as `matching`."""
    problems: list[str] = []
    layout = find_layout(dataset.spec, root) or dataset.spec.layouts[0]
    images = matching(root, _patterns(dataset.images) or layout.images)
    patterns = _patterns(dataset.annotations) or layout.annotations
    annotations = matching(root, patterns) if dataset.annotations else own_annotations(dataset.spec, root, patterns)
    missing = [pattern for pattern in patterns if not matching(root, (pattern,))]
    if not annotations or (missing and (dataset.annotations or dataset.spec.joins)):
        patterns_text = ", ".join(missing or patterns)
        problems.append(
            f"{where}.annotations: nothing below {root} matches {patterns_text}; expected {dataset.spec.layout}"
            + _about_lists(root)
        )
    if dataset.spec.embedded:
        images = _with_embedded(images, annotations)
    if need_images and not dataset.images and not images:
        problems.append(
            f"{where}.images: none of {', '.join(layout.images)} is below {root}; expected "
            f"{dataset.spec.layout.rstrip('.')}; set images: to where the images are"
        )
    problems += [
        f"{where}.images: nothing below {root} matches {pattern}{_about_lists(root)}"
        for pattern in _patterns(dataset.images)
        if not matching(root, (pattern,))
    ]
    odd = filter(None, map(name_problem, (root, *annotations, *images)))
    problems += [f"{where}: {problem}" for problem in islice(odd, 1)]
    inputs = Inputs(
        root=root,
        annotations=annotations,
        images=images,
        absent=() if dataset.spec.alternatives or layout in dataset.spec.other_layouts else tuple(missing),
    )
    return inputs, problems


def _servers(dataset: Dataset) -> set[str]:
    """The buckets and hosts that a dataset names, as URLs. Raises as `input_path`."""
    names = (dataset.root, *_patterns(dataset.annotations), *_patterns(dataset.images))
    return {input_path(Path(), name).anchor for name in names if "://" in name} - {os.sep}


def _no_folder(root: Path) -> str:
    if not is_remote(root):
        return f"no folder {root}"
    return f"nothing is below {root}" if not root.is_file() else f"{root} is a file; set root: to the folder above it"


def _about_lists(root: Path) -> str:
    """A web server gives no list of its files, so that patterns match nothing there."""
    is_listed = not is_remote(root) or not is_web(str(root))
    return "" if is_listed else "; a web server has no list of its files: name each file, without * or ?"


def _with_embedded(images: Sequence[Path], annotations: Sequence[Path]) -> tuple[Path, ...]:
    """The image stores, and the files of records that have images in them."""
    known = {os.path.abspath(path) for path in images}
    return (*images, *(path for path in annotations if os.path.abspath(path) not in known and may_hold_images(path)))


def _patterns(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
