"""Calls before or after a module of another package is imported, without importing it.

after_import("transformers.models.auto.configuration_auto", register)   # now, if it was imported already
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[], object]


def after_import(name: str, action: Action) -> None:
    """Call the action right after Python has run the module; at once if it was imported before.

    If the module is being run right now, by an import that led here, the action comes with the next import after it.
    """
    module = sys.modules.get(name)
    if module is None:
        sys.meta_path.insert(0, _Finder(name, after=action))
    elif _is_running(module):
        sys.meta_path.insert(0, _Waiting(name, module, action))
    else:
        action()


def before_import(name: str, action: Action) -> None:
    """Call the action right before Python runs the module; never if it was imported before."""
    if name not in sys.modules:
        sys.meta_path.insert(0, _Finder(name, before=action))


class _Finder(MetaPathFinder):
    """Finds one module as Python does without this finder, until the module was run; some only ask if it exists."""

    def __init__(self, name: str, *, before: Action | None = None, after: Action | None = None) -> None:
        self._name, self._before, self._after = name, before, after
        self._is_searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name or self._is_searching:
            return None
        self._is_searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def run(self, loader: Loader, module: ModuleType) -> None:
        """Run the module with its loader, and the calls around it."""
        sys.meta_path.remove(self)
        if self._before is not None:
            self._before()
        loader.exec_module(module)
        if self._after is not None:
            self._after()


class _Waiting(MetaPathFinder):
    """Finds nothing: it waits for the end of a module that runs already."""

    def __init__(self, name: str, module: ModuleType, action: Action) -> None:
        self._name, self._module, self._action = name, module, action

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if _is_running(self._module):
            return
        sys.meta_path.remove(self)
        if sys.modules.get(self._name) is self._module:
            self._action()
        else:  # its import failed
            after_import(self._name, self._action)


def _is_running(module: ModuleType) -> bool:
    return bool(getattr(module.__spec__, "_initializing", False))


class _Loader(Loader):
    """The module's own loader, which runs it by way of the finder."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        self._finder.run(self._loader, module)
