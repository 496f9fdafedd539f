"""Imports run one way, and the data half needs nothing of the training half."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.heavy_packages import HEAVY
from tests.support.paths import ROOT

OURS = {"dst", "preprocess", "shards", "trainer", "tools", "tests"}
LAYERS = {
    "dst": """
        errors  common  template_budget  jinja_environment  messages  template  image_places  control_tokens
        tokenizer_trial  tokenizer  encoded  template_check  chat_tokenizer
    """,
    "shards": """
        errors  files  typed_json  storage  images.geometry  images.tiles  format  images  sampling  build
        verify  upload  loader
    """,
    "preprocess": """
        errors  compiler_version  terminal  containers  fast_record  conversation  conversation_lines
        adapters.groups  adapters.base  adapters.parsing  adapters.datasets  adapters.registry  adapters.lookup
        images  filters  dedupe  templates  blend  fetch  compiler  views  viewer  reports  cli_options  cli_compare
        cli_stats  cli_template  cli_view  cli
    """,
    "trainer": """
        errors  import_hooks  compat  config  attention  model.encoders  model  distributed  model_io  auto_classes
        checkpoint  training  inference  serving  export  verify  evaluation  lmms_eval  reporting  cli_options
        cli_measure  cli_serve  cli
    """,
}
"""Modules and sub-packages; each imports only from itself and from those before it (docs/architecture.md)"""
BELOW = {"dst": set(), "shards": {"dst.errors"}, "preprocess": {"dst", "shards"}, "trainer": {"dst", "shards"}}
"""Packages and modules that a package may import besides itself; all errors share the base class in dst.errors"""
TORCH_PART = {
    "shards/images/torch_fit.py",
    *(f"shards/loader/{name}.py" for name in ("__init__", "batch", "guests", "loader", "workers")),
}
"""What makes tensors, or resizes with torch if it is there; `import shards` does not import it"""


def modules(package: str) -> dict[str, Path]:
    paths = {path: path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / package).rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in paths.items()}


def imported(path: Path) -> set[str]:
    """Full names: of a module, or of what is taken out of it."""
    actual = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            actual |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where a name comes from"
            actual |= {f"{node.module}.{name.name}" for name in node.names}
    return actual


def imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def layer(name: str) -> int:
    """The number of a module's layer in its package, by the longest name that fits; a package's __init__ is last."""
    package, _, rest = name.partition(".")
    layers = LAYERS[package].split()
    fits = [one for one in layers if f"{rest}.".startswith(f"{one}.")]
    return layers.index(max(fits, key=len)) if fits else len(layers)


@pytest.mark.parametrize("package", sorted(BELOW))
def test_imports_between_our_packages_run_one_way(package: str) -> None:
    for path in modules(package).values():
        for used in imported(path):
            if used.split(".")[0] in OURS - {package}:
                assert any(f"{used}.".startswith(f"{allowed}.") for allowed in BELOW[package]), f"{path} imports {used}"


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_imports_between_the_layers_of_a_package_run_one_way(package: str) -> None:
    for name, path in modules(package).items():
        for used in imported(path):
            if used.split(".")[0] == package:
                assert layer(used) <= layer(name), f"{name} imports {used}"


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_every_module_has_a_layer(package: str) -> None:
    actual = modules(package)
    known = {f"{package}.{name}" for name in LAYERS[package].split()}
    assert known <= {*actual}
    for name, path in actual.items():
        if path.name != "__init__.py":
            assert layer(name) < len(LAYERS[package].split()), name


@pytest.mark.parametrize("package", ["dst", "shards", "preprocess"])
def test_the_data_half_names_no_heavy_package(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        allowed = {"torch"} if path.relative_to(ROOT).as_posix() in TORCH_PART else set()
        assert not imports(path) & HEAVY - allowed, path


LIGHT = [
    "dst",
    "shards",
    "preprocess.compiler.build",
    "preprocess.cli",
    "preprocess.views.inspect",
    "trainer.reporting.page",
    "trainer.cli",
    "trainer.lmms_eval",
]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_the_data_half_or_a_command_line_loads_no_heavy_package(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("module", ["shards", "preprocess.compiler.ingest", "preprocess.compiler.run_task"])
def test_a_worker_of_the_compiler_starts_without_what_only_the_command_needs(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"pydantic", "pyarrow.compute", "yaml"} & set(done.stdout.split())


def test_an_install_of_the_data_half_asks_for_no_heavy_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needs = {need.split(">")[0].split("[")[0] for need in project["dependencies"]}
    assert not needs & {*HEAVY, "open_clip_torch", "webdataset"}
    assert {"train", "ray"} <= set(project["optional-dependencies"])


def test_every_package_is_part_of_an_install() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert settings["packages"]["find"]["include"] == [f"{package}*" for package in sorted(LAYERS)]
    for package in LAYERS:
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), f"{path} is in no package, so no install holds it"


def test_the_architecture_page_lists_the_layers_in_their_order() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = page.split("<!-- layers -->\n```text\n")[1].split("```")[0]
    names = block.split()
    starts = [names.index(package) for package in LAYERS]
    listed = {names[start]: names[start + 1 : end] for start, end in zip(starts, [*starts[1:], None], strict=True)}
    assert listed == {package: layers.split() for package, layers in LAYERS.items()}


def test_no_test_imports_a_test() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imported(path) if ".test_" in name], path
