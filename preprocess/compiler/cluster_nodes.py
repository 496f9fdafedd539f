"""What a node of a cluster must have for the tasks of a build, and the check of every node before work starts.

Rule: a node that would make other bytes (another version of a library), or none (a path that it cannot see), is named
with its address and what it lacks.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from preprocess.compiler_version import COMPILER, libraries
from preprocess.containers.remote_path import is_remote
from preprocess.errors import DataError

CHECK_S = 120.0
"""The longest wait for the answers of all nodes: a worker process there has to start and to import dsvl."""

LAST_S = 10.0
"""The longest wait for nodes when a build ends or is stopped, and after the death of a worker."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNeeds:
    """versions: (name, version) of what can change a byte. inputs: local files and folders of the blend.

    probe: (a file of the build folder, its content), if nodes have to share that folder.
    """

    versions: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    probe: tuple[str, str] | None


def node_needs(inputs: Sequence[Path], probe: Path | None) -> NodeNeeds:
    return NodeNeeds(
        versions=tuple(_versions().items()),
        inputs=tuple(dict.fromkeys(str(path) for path in inputs if not is_remote(path))),
        probe=None if probe is None else (str(probe), probe.read_text(encoding="utf-8")),
    )


@lru_cache(maxsize=4)
def node_problem(needs: NodeNeeds) -> str | None:
    """Why this node cannot do the work; None if it can. Looked at once in each process."""
    here = this_node()
    own = _versions()
    for name, version in needs.versions:
        if own.get(name) != version:
            return (
                f"{here}: has {name} {own.get(name)}, the machine of the build has {version}, and other versions can "
                "make other bytes; install the same packages on every node"
            )
    for path in needs.inputs:
        if not os.path.exists(path):
            return (
                f"{here}: cannot see {path}, which the machine of the build can; mount it there at the same path, or "
                "put the data on object storage and give its URL"
            )
    if needs.probe is not None:
        path, content = needs.probe
        if _text(path) != content:
            folder = Path(path).parents[1]
            return (
                f"{here}: cannot see the build folder {folder}; use a folder that all nodes share, or --out with a "
                "URL, which needs none"
            )
    return None


def check_nodes(ray: Any, needs: NodeNeeds) -> None:
    """Ask every node with CPUs. Raises DataError that names all nodes with a problem."""
    asked, ready, late = _ask(ray, node_problem.__wrapped__, needs, CHECK_S)
    problems = [
        f"node {_name(asked[reference])}: no worker process answered within {CHECK_S:.0f} s; see the logs in /tmp/ray "
        "there"
        for reference in late
    ]
    for reference in ready:
        try:
            problem = ray.get(reference)
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # the node was lost a moment ago, and gets no tasks
        except ray.exceptions.RayError as error:
            last = str(error).strip().rpartition("\n")[2][:300]
            problem = (
                f"node {_name(asked[reference])}: cannot run a task ({last}); install dsvl[ray] and the packages of "
                "your adapters there, in the versions of this machine"
            )
        if problem:
            problems.append(problem)
    if problems:
        raise DataError("\n".join(sorted(set(problems))))


def on_every_node(ray: Any, function: Callable[[Any], T], argument: Any) -> list[T]:
    """The results of a call on every node with CPUs; without those of nodes that fail, or do not answer soon."""
    results: list[T] = []
    with contextlib.suppress(ray.exceptions.RayError, ConnectionError, RuntimeError):
        for reference in _ask(ray, function, argument, LAST_S)[1]:
            with contextlib.suppress(ray.exceptions.RayError):
                results.append(ray.get(reference))
    return results


def this_node() -> str:
    """The name of this node in messages."""
    ray = importlib.import_module("ray")
    address = ray.util.get_node_ip_address() if ray.is_initialized() else "here"
    return f"node {address} ({socket.gethostname()})"


def _ask(
    ray: Any, function: Callable[[Any], Any], argument: Any, limit_s: float
) -> tuple[dict[Any, Mapping[str, Any]], list[Any], list[Any]]:
    """(reference -> node, references that are ready, those that are late)"""
    affinity = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    ask = ray.remote(function)
    options = {"num_cpus": 0, "max_retries": 0}
    asked = {
        ask.options(**options, scheduling_strategy=affinity(node["NodeID"], soft=False)).remote(argument): node
        for node in nodes
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s) if asked else ([], [])
    return asked, ready, late


def _versions() -> Mapping[str, str]:
    own = {"Python": ".".join(platform.python_version_tuple()[:2]), "dsvl's compiler": str(COMPILER)}
    return own | {"dsvl": metadata.version("dsvl")} | libraries()


def _name(node: Mapping[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeManagerHostname']})"


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
