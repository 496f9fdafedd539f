"""Which parameters are trained, with which learning rate and which weight decay.

The rule: every parameter belongs to one component, by its name; embeddings are recognised by identity, so a head that
is tied to the input embeddings counts once. `lora` is the adapters and the modules that are trained in full next to
them. This module sets `requires_grad` of every parameter, however the model was loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from dst.errors import ConfigError
from trainer.compat.bitsandbytes import num_weights
from trainer.config.model import LearningRates
from trainer.model.vision_chat import VisionChatModel

COMPONENTS = ("encoder", "projector", "embeddings", "decoder", "lora")

# Embedding tables and trained vectors that are parameters themselves, not a layer's `weight`.
_TABLE = re.compile(r".*(embed(ding)?s?|quer(y|ies)|tokens?)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRow:
    """A line of the table. share: trained part of the component, 0 to 1. learning_rate: None if it is frozen."""

    component: str
    parameters: int
    trained: int
    share: float
    learning_rate: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """An optimizer's parameter group, named after component and decay."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    learning_rate: float
    weight_decay: float

    def for_torch(self) -> dict[str, Any]:
        """As torch's optimizers take it; DeepSpeed keeps the name."""
        return {
            "name": self.name,
            "params": list(self.parameters),
            "lr": self.learning_rate,
            "weight_decay": self.weight_decay,
        }


def choose_trained(model: VisionChatModel, rates: LearningRates) -> None:
    """Freeze or unfreeze every parameter. Raises ConfigError if none would be trained."""
    for _, parameter, component in by_component(model):
        parameter.requires_grad_(getattr(rates, component) is not None and parameter.is_floating_point())
    model.train(model.training)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        named = ", ".join(f"learning_rates.{name}" for name in COMPONENTS[:-1])
        raise ConfigError(
            [f"learning_rates: nothing is trained; set one of {named}, or add adapters with lora.decoder"]
        )


def parameter_groups(model: VisionChatModel, rates: LearningRates, weight_decay: float) -> list[Group]:
    """All trained parameters, in groups by component and decay; empty groups are omitted."""
    undecayed = _undecayed(model)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for _, parameter, component in by_component(model):
        if parameter.requires_grad:
            groups.setdefault((component, id(parameter) not in undecayed), []).append(parameter)
    return [
        Group(
            name=f"{component} {'decayed' if decays else 'not decayed'}",
            parameters=tuple(groups[component, decays]),
            learning_rate=getattr(rates, component),
            weight_decay=weight_decay if decays else 0.0,
        )
        for component in COMPONENTS
        for decays in (True, False)
        if (component, decays) in groups
    ]


def component_rows(model: VisionChatModel, rates: LearningRates) -> list[ComponentRow]:
    """The table of all parameters and trained ones; a component without parameters has no row."""
    counts: dict[str, list[int]] = {component: [0, 0] for component in COMPONENTS}
    for _, parameter, component in by_component(model):
        counts[component][0] += _size(parameter)
        counts[component][1] += _size(parameter) * parameter.requires_grad
    return [
        ComponentRow(
            component=component,
            parameters=parameters,
            trained=trained,
            share=trained / parameters,
            learning_rate=getattr(rates, component) if trained else None,
        )
        for component, (parameters, trained) in counts.items()
        if parameters
    ]


def print_parameters(rows: list[ComponentRow], console: Console) -> None:
    """The rows and their sum as a table."""
    table = Table("component", title="Parameters")
    for heading in ("parameters", "trained", "share", "learning rate"):
        table.add_column(heading, justify="right")
    for row in rows:
        rate = "frozen" if row.learning_rate is None else f"{row.learning_rate:g}"
        table.add_row(row.component, f"{row.parameters:,}", f"{row.trained:,}", f"{row.share:.1%}", rate)
    total, trained = sum(row.parameters for row in rows), sum(row.trained for row in rows)
    table.add_section()
    table.add_row("all", f"{total:,}", f"{trained:,}", f"{trained / max(1, total):.1%}", "")
    console.print(table)


def by_component(model: VisionChatModel) -> Iterator[tuple[str, nn.Parameter, str]]:
    """Every parameter once: name, parameter, component."""
    tables = (model.decoder.get_input_embeddings(), model.decoder.get_output_embeddings())
    embeddings = {id(parameter) for module in tables for parameter in module.parameters()}
    saved = {id(parameter) for name in model.modules_to_save for parameter in model.get_submodule(name).parameters()}
    for name, parameter in model.named_parameters():
        if "lora_" in name or id(parameter) in saved:
            yield name, parameter, "lora"
        elif id(parameter) in embeddings:
            yield name, parameter, "embeddings"
        else:
            yield name, parameter, name.partition(".")[0]


def _undecayed(model: VisionChatModel) -> set[int]:
    """Ids of norms and biases, which have one dimension, of embedding tables, by class or by name, and of the head."""
    head = model.decoder.get_output_embeddings()
    undecayed = {id(parameter) for name, parameter in head.named_parameters() if "lora_" not in name}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_table = isinstance(module, nn.Embedding) or _TABLE.fullmatch(name)
            if is_table or len(getattr(parameter, "ds_shape", parameter.shape)) < 2:
                undecayed.add(id(parameter))
    return undecayed


def _size(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, also where ZeRO-3 leaves a rank only its share."""
    return int(getattr(parameter, "ds_numel", num_weights(parameter)))
