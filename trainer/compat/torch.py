"""Whether torch can be loaded, fits torchvision, and finds the device that it was built for.

The rule: what cannot work is an error before work starts; what works differently than expected is a warning. Commands
call `check_torch` first, so that a broken install is explained once and not by whatever module imports torch.
"""

from __future__ import annotations

import warnings
from importlib import metadata

from dst.errors import ConfigError


def check_torch() -> list[str]:
    """Warnings about the installed torch and torchvision, one line each. Raises ConfigError if torch cannot be used."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise ConfigError([f"torch is installed, but not what it needs: {error}; install it again"]) from None
        raise ConfigError(
            [
                "torch is not installed, and dsvl-train needs it: pip install 'dsvl[train]' (its documentation says "
                "how to get the build for your GPU, or for a CPU)"
            ]
        ) from None
    except (ImportError, OSError) as error:
        why = " ".join(str(error).split())
        raise ConfigError([f"torch is installed but cannot be loaded ({why}); install it again"]) from None
    problems = _torchvision(torch.__version__)
    if torch.version.cuda is not None:
        problems += _driver(torch.__version__, torch.version.cuda)
    return problems


def _torchvision(torch_version: str) -> list[str]:
    """Each torchvision is built for one torch, which is in its requirements."""
    from packaging.requirements import Requirement

    try:
        installed = metadata.distribution("torchvision")
    except metadata.PackageNotFoundError:
        return []
    requirements = map(Requirement, installed.requires or ())
    torch_requirement = next((requirement for requirement in requirements if requirement.name == "torch"), None)
    if torch_requirement is None or torch_requirement.specifier.contains(torch_version, prereleases=True):
        return []
    return [
        f"torchvision {installed.version} was built for torch{torch_requirement.specifier}, but torch {torch_version} "
        "is installed; its transforms are used, its compiled operators are not: install the torchvision of your torch"
    ]


def _driver(torch_version: str, cuda: str) -> list[str]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        works = torch.cuda.is_available()
    if works:
        return []
    why = (
        " ".join(str(caught[0].message).split()).partition(" (Triggered")[0] if caught else "no NVIDIA driver was found"
    )
    return [
        f"torch {torch_version} is built for CUDA {cuda}, but cannot use a GPU: {why}; running on the CPU. Without a "
        "GPU install torch's CPU build; with one, check that nvidia-smi works"
    ]
