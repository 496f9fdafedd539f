"""LoRA adapters of peft, in place: the model stays the same module; linear layers are replaced by adapted ones.

The rule: a target that matches no layer is an error, which names the nearest. Parameters of adapters have `lora_` in
their names. Modules trained in full next to them (`modules_to_save`) stay the modules they are, so tied weights stay
tied; the model lists their parameters. trainer.model.param_groups decides which parameters are trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dst.common.suggest import nearest
from dst.errors import ConfigError
from trainer.compat.peft import adapted_layers, inject, merged
from trainer.compat.transformers import linear_types
from trainer.config.model import LoraAdapters, LoraConfig
from trainer.model.vision_chat import VisionChatModel

ALL_LINEAR = "all-linear"
_CONVOLUTIONS = (nn.Conv1d, nn.ConvTranspose1d)
_NONE: Mapping[str, str] = {}


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
    parameters = find_parameters(root, config.target_parameters, where=where)
    problems = [*_tied_head(root, names, where), *_excessive_rank(root, names, config.rank, where)]
    if problems:
        raise ConfigError(problems)
    try:
        inject(
            root,
            names,
            parameters,
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
    what = "linear layer outside of modules_to_save" if saved else "linear layer"
    return _selected(layers, targets, f"{where}.target_modules", what, inside)


def find_parameters(root: nn.Module, targets: Sequence[str], *, where: str) -> list[str]:
    """Names of the parameters that `targets` selects by their names or last parts, of those that are no layer's weight.

    Raises ConfigError for a target that matches none.
    """
    return _selected(_parameters(root), targets, f"{where}.target_parameters", "parameter of three dimensions")


def unadapted_experts(model: VisionChatModel, adapters: LoraAdapters) -> list[str]:
    """A note if all-linear leaves the experts of the decoder without adapters, since they are not linear layers."""
    lora = adapters.decoder
    if lora is None or lora.target_modules != ALL_LINEAR or lora.target_parameters:
        return []
    parameters = _parameters(model.get_submodule("decoder"))
    if not parameters:
        return []
    last_parts = sorted({name.rpartition(".")[2] for name in parameters})
    millions = sum(parameter.numel() for parameter in parameters.values()) / 1e6
    return [
        f"lora.decoder.target_modules: all-linear does not adapt the decoder's experts, {millions:,.1f} million "
        f"parameters that are not linear layers; to adapt them add target_parameters: [{', '.join(last_parts)}]"
    ]


def find_saved(root: nn.Module, names: Sequence[str], *, where: str) -> list[str]:
    """Names of the modules that `names` selects by their names or last parts. Raises ConfigError."""
    modules = {
        name: module for name, module in root.named_modules() if name and next(module.parameters(), None) is not None
    }
    return _selected(modules, names, f"{where}.modules_to_save", "module with weights")


def merge_lora(root: nn.Module) -> None:
    """Merge every adapter in `root` into its layer's weights, and restore the plain layers."""
    adapted = adapted_layers(root)
    for name, module in adapted.items():
        if {name.removesuffix(".base_layer.out_proj"), name.removesuffix(".base_layer")} & (adapted.keys() - {name}):
            continue  # an adapted attention block merges its own output layer, a module all of its parameters
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


def _parameters(root: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with a matrix for each expert, by name; an adapted module's are behind its `base_layer`."""
    return {
        name: parameter
        for name, parameter in root.named_parameters()
        if parameter.dim() == 3 and not isinstance(root.get_submodule(name.rpartition(".")[0]), _CONVOLUTIONS)
    }


def _tied_head(root: nn.Module, names: Sequence[str], where: str) -> list[str]:
    head = getattr(root, "get_output_embeddings", lambda: None)()
    if head is None or head.weight is not root.get_input_embeddings().weight:  # type: ignore[operator]
        return []
    return [
        f"{where}.target_modules: got {name}, the output head, which shares its weights with the input embeddings, so "
        f"its adapter could not be merged into it alone; remove it, or set modules_to_save: [{name}] to train both"
        for name in names
        if root.get_submodule(name) is head
    ]


def _excessive_rank(root: nn.Module, names: Sequence[str], rank: int, where: str) -> list[str]:
    """A problem if no layer is as large as the rank: then the update is not of low rank in any."""
    sides = [side for name in names if (side := _smaller_side(root.get_submodule(name))) is not None]
    if not sides or rank <= max(sides):
        return []
    return [
        f"{where}.rank: got {rank}, more than the smaller side of every layer that is adapted; expected at most "
        f"{max(sides)}, usually 8 to 128"
    ]


def _smaller_side(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):  # a quantized layer's weight has another shape
        return min(layer.in_features, layer.out_features)
    weight = getattr(layer, "in_proj_weight", None) if isinstance(layer, nn.MultiheadAttention) else layer.weight
    return min(weight.shape) if isinstance(weight, torch.Tensor) else None


def _selected(
    names: Collection[str], targets: str | Sequence[str], where: str, what: str, inside: Mapping[str, str] = _NONE
) -> list[str]:
    """The names that the targets select: a regex of whole names, or a list of names or last parts.

    what: these are names of. inside: what cannot be selected itself -> the block that can be. Raises ConfigError with
    all targets that match nothing.
    """
    is_regex = isinstance(targets, str)
    problems: list[str] = []
    chosen: dict[str, None] = {}
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            matches = list(_matching(target, names, is_regex=is_regex))
        except re.error as error:
            raise ConfigError([f"{where}: {target!r} is not a valid regex: {error}"]) from None
        chosen.update(dict.fromkeys(matches))
        if not matches:
            problems.append(f"{where}: {target!r} matches no {what}{_hint(target, names, inside)}")
    if problems:
        raise ConfigError(problems)
    return list(chosen)


def _matching(target: str, names: Collection[str], *, is_regex: bool) -> Iterator[str]:
    pattern = re.compile(target) if is_regex else None
    for name in names:
        if pattern.fullmatch(name) if pattern else name == target or name.endswith(f".{target}"):
            yield name


def _hint(target: str, names: Collection[str], inside: Mapping[str, str]) -> str:
    for name in _matching(target, inside, is_regex=False):
        return f"; it is part of torch's attention, expected the block: {inside[name].rpartition('.')[2]}"
    last_parts = sorted({name.rpartition(".")[2] for name in names})
    return nearest(target, [*last_parts, *names]) or f"; there are {', '.join(last_parts) or 'none'}"
