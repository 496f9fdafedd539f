"""LoRA adapters of peft, in place: the model stays the same module; linear layers are replaced by adapted ones.

The rule: a target that matches no layer is an error, which names the nearest. Parameters of adapters have `lora_` in
their names. Modules trained in full next to them (`modules_to_save`) stay the modules they are, so tied weights stay
tied; the model lists their parameters. trainer.model.param_groups decides which parameters are trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import nn

from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.compat.peft import adapted_layers, inject, merged
from trainer.compat.transformers import linear_types
from trainer.config.model import LoraAdapters, LoraConfig
from trainer.model.vision_chat import VisionChatModel

ALL_LINEAR = "all-linear"


def add_adapters(model: VisionChatModel, adapters: LoraAdapters) -> None:
    """Add the adapters that `lora` configures. Raises ConfigError with all targets that match nothing."""
    problems = []
    for path, lora, where in (
        ("decoder", adapters.decoder, "lora.decoder"),
        ("encoder.tower", adapters.encoder, "lora.encoder"),
    ):
        if lora is not None:
            root = model.get_submodule(path)
            try:
                saved = find_saved(root, lora.modules_to_save, where=where)
                add_lora(root, lora, where=where, saved=saved)
                model.modules_to_save += tuple(f"{path}.{name}" for name in saved)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)


def add_lora(root: nn.Module, config: LoraConfig, *, where: str, saved: Collection[str] = ()) -> list[str]:
    """Adapt layers of `root` and return their names. where: what problems begin with. Raises ConfigError.

    saved: names of modules that are trained in full; nothing in them is adapted.
    """
    names = find_targets(root, config.target_modules, where=where, saved=saved)
    try:
        inject(
            root,
            names,
            rank=config.rank,
            alpha=config.alpha,
            dropout=config.dropout,
            rslora=config.rslora,
            dora=config.dora,
            init=config.init,
        )
    except ValueError as error:
        raise ConfigError([f"{where}: peft refuses it: {' '.join(str(error).split())}"]) from error
    return names


def find_targets(
    root: nn.Module, targets: str | Sequence[str], *, where: str, saved: Collection[str] = ()
) -> list[str]:
    """Names of the layers that `targets` selects, without those in the modules `saved`.

    Attention blocks of torch hold their matrices themselves, so such a block is adapted as a whole if it is named.
    all-linear selects neither these blocks nor the output head. Raises ConfigError.
    """
    layers, inside = _layers(root)
    for name in [name for name in layers if any(f"{name}.".startswith(f"{each}.") for each in saved)]:
        del layers[name]
    if targets == ALL_LINEAR:
        head = getattr(root, "get_output_embeddings", lambda: None)()
        linear = [name for name, module in layers.items() if isinstance(module, linear_types()) and module is not head]
        if not linear:
            raise ConfigError([f"{where}.target_modules: all-linear matches nothing, there are no linear layers"])
        return linear
    outside = " outside of modules_to_save" if saved else ""
    problems: list[str] = []
    chosen: dict[str, None] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            matches = list(_matching(target, layers, is_regex=isinstance(targets, str)))
        except re.error as error:
            raise ConfigError([f"{where}.target_modules: {target!r} is not a valid regex: {error}"]) from None
        chosen.update(dict.fromkeys(matches))
        if not matches:
            problems.append(
                f"{where}.target_modules: {target!r} matches no linear layer{outside}{_hint(target, layers, inside)}"
            )
    if problems:
        raise ConfigError(problems)
    return list(chosen)


def find_saved(root: nn.Module, names: Sequence[str], *, where: str) -> list[str]:
    """Names of the modules that `names` selects by their names or last parts. Raises ConfigError."""
    modules = {
        name: module for name, module in root.named_modules() if name and next(module.parameters(), None) is not None
    }
    chosen: dict[str, None] = {}
    problems = []
    for name in names:
        matches = list(_matching(name, modules, is_regex=False))
        chosen.update(dict.fromkeys(matches))
        if not matches:
            last_parts = sorted({each.rpartition(".")[2] for each in modules})
            hint = nearest(name, [*last_parts, *modules]) or f"; there are {', '.join(last_parts)}"
            problems.append(f"{where}.modules_to_save: {name!r} matches no module with weights{hint}")
    if problems:
        raise ConfigError(problems)
    return list(chosen)


def merge_lora(root: nn.Module) -> None:
    """Merge every adapter in `root` into its layer's weights, and restore the plain layers."""
    adapted = adapted_layers(root)
    for name, module in adapted.items():
        if name.removesuffix(".base_layer.out_proj") in adapted.keys() - {name}:
            continue  # an adapted attention block merges its own output layer
        parent, _, last = name.rpartition(".")
        setattr(root.get_submodule(parent), last, merged(module))


def remove_adapters(root: nn.Module) -> dict[str, Any]:
    """Restore the plain layers without merging; returns the adapted ones by the names of their layers."""
    adapted = adapted_layers(root)
    for name, module in adapted.items():
        parent, _, last = name.rpartition(".")
        setattr(root.get_submodule(parent), last, module.get_base_layer())
    return adapted


def _layers(root: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Layers that can be adapted, by name; and each linear layer inside torch's attention -> name of its block."""
    layers: dict[str, nn.Module] = {}
    inside: dict[str, str] = {}
    kinds: tuple[type[nn.Module], ...] = (*linear_types(), nn.MultiheadAttention)
    for name, module in root.named_modules():
        parent = name.rpartition(".")[0]
        if isinstance(root.get_submodule(parent), nn.MultiheadAttention) and name:
            inside[name] = parent
        elif isinstance(module, kinds):
            layers[name] = module
    return layers, inside


def _matching(target: str, names: dict[str, nn.Module], *, is_regex: bool) -> Iterator[str]:
    pattern = re.compile(target) if is_regex else None
    for name in names:
        if pattern.fullmatch(name) if pattern else name == target or name.endswith(f".{target}"):
            yield name


def _hint(target: str, layers: dict[str, nn.Module], inside: dict[str, str]) -> str:
    for name, block in inside.items():
        if name == target or name.endswith(f".{target}"):
            return f"; it is part of torch's attention, expected the block: {block.rpartition('.')[2]}"
    last_parts = sorted({name.rpartition(".")[2] for name in layers})
    return nearest(target, [*last_parts, *layers]) or f"; there are {', '.join(last_parts)}"
