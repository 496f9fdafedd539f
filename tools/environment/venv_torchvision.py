"""Make torchvision importable next to the CPU build of torch, in every program of an environment.

The package index has torchvision for CUDA alone, and its operators do not load with the CPU build of torch, which a
machine without a GPU gets. `import torchvision` then ends with an error, and so do most imports of transformers. dsvl's
own programs declare the operators first (trainer/compat/torchvision.py). A .pth file does the same for all others, such
as the lines of a model card: Python runs it at its start, and it only waits for the import of torchvision.
"""

from __future__ import annotations

from pathlib import Path

GUARD = "dsvl-torchvision.pth"
HOOKS = "trainer/import_hooks.py"

_LINE = (
    "import importlib.util as u; "
    "s = u.spec_from_file_location('_dsvl_import_hooks', {path!r}); "
    "m = u.module_from_spec(s); "
    "s.loader.exec_module(m); "
    "m.before_import('torchvision', lambda: __import__('trainer.compat'))\n"
)


def write_guard(site_packages: Path, project: Path) -> None:
    """Write the file where it is needed, and remove it where it is not."""
    path = site_packages / GUARD
    hooks = project / HOOKS
    if hooks.is_file() and _does_not_fit(site_packages):
        path.write_text(_LINE.format(path=str(hooks)), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _does_not_fit(site_packages: Path) -> bool:
    is_cpu = {
        name: any("+cpu" in info.name for info in infos)
        for name in ("torch", "torchvision")
        if (infos := list(site_packages.glob(f"{name}-*.dist-info")))
    }
    return is_cpu == {"torch": True, "torchvision": False}
