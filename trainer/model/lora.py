"""LoRA adapters by peft, in place: the model stays the same module, with adapted layers where linear ones were.

The rule: every target matches a layer, or it is an error that names what is near. Adapters are parameters whose names
contain `lora_`; which parameters learn is not decided here but in trainer.model.param_groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.compat.peft import adapted_layers, inject, merged
from trainer.compat.transformers import linear_types
from trainer.config.model import LoraAdapters, LoraConfig
from trainer.model.vision_chat import VisionChatModel

ALL_LINEAR = "all-linear"


def add_adapters(model: VisionChatModel, adapters: LoraAdapters) -> None:
    """Put the adapters of `lora` into a VisionChatModel. Raises ConfigError with all targets that match nothing."""
    problems = []
    for root, lora, where in (
        (model.get_submodule("decoder"), adapters.decoder, "lora.decoder"),
        (model.get_submodule("encoder.tower"), adapters.encoder, "lora.encoder"),
    ):
        if lora is not None:
            try:
                add_lora(root, lora, where=where)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)


def add_lora(root: nn.Module, config: LoraConfig, *, where: str) -> list[str]:
    """Adapt layers of `root` and return their names. Raises ConfigError, its problems beginning with `where`."""
    names = find_targets(root, config.target_modules, where=where)
    try:
        inject(root, names, rank=config.rank, alpha=config.alpha, dropout=config.dropout)
    except ValueError as error:
        raise ConfigError([f"{where}: peft refuses it: {' '.join(str(error).split())}"]) from error
    return names


def find_targets(root: nn.Module, targets: str | Sequence[str], *, where: str) -> list[str]:
    """Names of the linear layers meant. Attention blocks of torch hold their matrices themselves, so there the block
    is adapted as a whole, if it is named; all-linear leaves it, and always the output head.
    """
    layers, inside = _layers(root)
    if targets == ALL_LINEAR:
        head = getattr(root, "get_output_embeddings", lambda: None)()
        found = [name for name, module in layers.items() if isinstance(module, linear_types()) and module is not head]
        if not found:
            raise ConfigError([f"{where}.target_modules: all-linear matches nothing, there are no linear layers"])
        return found
    problems: list[str] = []
    chosen: dict[str, None] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            matches = list(_matching(target, layers, is_regex=isinstance(targets, str)))
        except re.error as error:
            raise ConfigError([f"{where}.target_modules: {target!r} is no regex: {error}"]) from None
        chosen.update(dict.fromkeys(matches))
        if not matches:
            problems.append(
                f"{where}.target_modules: {target!r} matches no linear layer{_hint(target, layers, inside)}"
            )
    if problems:
        raise ConfigError(problems)
    return list(chosen)


def merge_lora(root: nn.Module) -> None:
    """Add every adapter below `root` to its layer's weights and put the plain layer back."""
    adapted = adapted_layers(root)
    for name, module in adapted.items():
        if name.removesuffix(".base_layer.out_proj") in adapted.keys() - {name}:
            continue  # an adapted attention block merges its own output layer
        parent, _, last = name.rpartition(".")
        setattr(root.get_submodule(parent), last, merged(module))


def _layers(root: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """What can be adapted, by name; and the linear layers inside torch's attention, each with its block's name."""
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
            return f"; it is a part of torch's attention, wanted the block: {block.rpartition('.')[2]}"
    last_parts = sorted({name.rpartition(".")[2] for name in layers})
    return nearest(target, [*last_parts, *layers]) or f"; there are {', '.join(last_parts)}"
