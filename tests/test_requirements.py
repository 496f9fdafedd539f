"""Each requirement that pyproject.toml lists is imported, and each import is of a requirement that it lists."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.clean_venvs import NotInstalledError, closure, direct_requirements
from tests.support.extras import EXTRAS, OURS, names_of, providers
from tests.support.paths import ROOT

EXTRA_OF = {
    "dst/common/charts.py": "view",
    "preprocess/compiler/cluster_nodes.py": "ray",
    "preprocess/compiler/ray_engine.py": "ray",
    "dst/common/public_addresses.py": "remote",
    "preprocess/fetch/download.py": "remote",
    "preprocess/viewer/app.py": "view",
    "preprocess/viewer/server.py": "view",
    "shards/loader/__init__.py": "train",
    "shards/loader/batch.py": "train",
    "shards/loader/guests.py": "train",
    "shards/images/decode.py": "train",
    "shards/images/torch_fit.py": "train",
    "shards/loader/loader.py": "train",
    "shards/loader/workers.py": "train",
    "trainer": "train",
    "trainer/serving/page.py": "serve",
    "trainer/serving/answers.py": "serve",
    "trainer/serving/app.py": "serve",
    "trainer/serving/connections.py": "serve",
    "trainer/serving/failures.py": "serve",
    "trainer/serving/guard.py": "serve",
    "trainer/serving/images.py": "serve",
    "trainer/serving/request_notes.py": "serve",
    "trainer/serving/server.py": "serve",
}
"""Packages and files that may import more than `pip install dsvl` brings"""

NOT_IMPORTED_BY_NAME = {
    "bitsandbytes": "trainer.compat.bitsandbytes imports it by importlib; preflight names the extra if it is missing",
    "av": "preprocess.images.videos imports it by importlib, and names the extra if it is missing",
    "gcsfs": "fsspec imports it for gs:// URLs",
    "py3langid": "preprocess.filters.language imports it by importlib, and names the extra if it is missing",
    "pycocoevalcap": "trainer.evaluation.captions imports it by importlib, and names the extra if it is missing",
    "s3fs": "fsspec imports it for s3:// URLs",
    "tensorboard": "torch.utils.tensorboard imports it",
    "torchvision": "open_clip, peft and transformers import it",
}

HOSTS = {"lmms_eval": "a program that imports trainer.lmms_eval, and not the other way round"}
"""Packages that files import which nothing but these packages import"""

PINNED_BY = {"pydantic-core": "pydantic"}
"""What a requirement pins to one version, as its other half: whoever has the one has the other"""


def third_party_imports(path: Path) -> Iterator[str]:
    """Top-level modules that a file imports, also in functions, without Python's and ours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(name)):
                names = [name]
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name))]):
                names = [name]
            case _:
                continue
        tops = {name.partition(".")[0] for name in names}
        yield from sorted(tops - sys.stdlib_module_names - {*OURS})


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """Each file of ours -> the distributions it imports from; of those that share a module's name, all."""
    try:
        closure(direct_requirements(EXTRAS))
    except NotInstalledError as error:
        pytest.skip(str(error))
    bring = providers()
    return {
        path.relative_to(ROOT).as_posix(): {
            name for module in third_party_imports(path) for name in bring.get(module, {module})
        }
        for package in OURS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_every_import_is_of_a_requirement_that_pyproject_lists(imported: dict[str, set[str]]) -> None:
    unlisted = {}
    for file, distributions in imported.items():
        extra = EXTRA_OF.get(file) or EXTRA_OF.get(file.partition("/")[0])
        if rest := distributions - names_of(*filter(None, [extra])) - PINNED_BY.keys() - HOSTS.keys():
            unlisted[file] = rest  # another requirement may bring it today, and stop tomorrow
    assert not unlisted


def test_every_requirement_that_pyproject_lists_is_imported(imported: dict[str, set[str]]) -> None:
    unused = names_of(*EXTRAS) - set().union(*imported.values()) - NOT_IMPORTED_BY_NAME.keys()
    assert not unused
