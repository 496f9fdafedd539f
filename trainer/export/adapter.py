"""Write what a run trained as an adapter of peft, for the LLaVA folder that the run began with.

    model = LlavaForConditionalGeneration.from_pretrained(started_llava)
    model = PeftModel.from_pretrained(model, adapter)  # the logits of the trained model

The rule: the adapter is complete or refused. LoRA weights are peft's own. Modules that were trained in full, usually
the projector, are its `modules_to_save`: the fewest modules that hold the trained parameters and no others. Names and
shapes are compared with the model that transformers builds of the folder's config. No base weights are read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dst.errors import ConfigError
from shards.typed_json import to_json
from trainer.checkpoint.init_from import llava_start
from trainer.compat.peft import AdapterLayers, adapter_key, write_adapter_config
from trainer.compat.transformers import llava_shapes
from trainer.config.model import LoraConfig
from trainer.export.adapter_card import adapter_card
from trainer.export.export import card_facts
from trainer.export.folder import check_out, copy_tokenizer, whole_folder
from trainer.export.model_card import weights_sha256
from trainer.model.build_model import build_model
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.adapter_record import ADAPTER_FORMAT, ADAPTER_RECORD, ADAPTER_VERSION
from trainer.model_io.digests import file_facts, sealed
from trainer.model_io.llava import module_path, refusals
from trainer.model_io.load import DTYPES
from trainer.model_io.record import CARD, read_record
from trainer.model_io.safetensors_files import check_finite, save_tensors
from trainer.model_io.standard_parts import is_tied
from trainer.training.restore import OpenedRun, open_run

WEIGHTS = "adapter_model.safetensors"

_TABLE = "model.language_model.embed_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedAdapter:
    """What was written."""

    folder: Path
    base: str
    """The LLaVA folder that it is loaded onto"""
    parameters: int
    size_bytes: int
    notes: tuple[str, ...]
    """A line for each part whose code is not the one that trained it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameter:
    """A trained parameter that is not an adapter's."""

    name: str
    """In the checkpoint"""
    path: str
    """In transformers' LLaVA"""


def export_adapter(
    location: Path,
    out: Path,
    *,
    build: str | None = None,
    init_from: str | None = None,
    precision: str | None = None,
    allow_extensions: Collection[str] = (),
) -> ExportedAdapter:
    """Write the adapter of the checkpoint at `location`.

    build, init_from, allow_extensions: as trainer.training.restore takes them. precision: of the weights; default: as
    trained. Raises ConfigError if an adapter cannot hold what was trained, and as trainer.export.export.export does.
    """
    check_out(out)
    run = open_run(location, build=build, init_from=init_from, allow_extensions=allow_extensions)
    with torch.device("meta"):
        model = build_model(run.config.model, run.facts, weights=False)
    if reason := _refusal(run, model):
        raise ConfigError([f"--adapter: {reason}; export without --adapter"])
    base = str(run.config.model.init_from)
    shapes = llava_shapes(base)
    groups, trained = _groups(run, model, shapes), _trained(run, model, shapes)
    ties_head = is_tied(model.decoder) and any(_is_table(parameter.path) for parameter in trained)
    saved = _whole_modules({parameter.path for parameter in trained}, shapes)
    dtype = DTYPES[precision or run.config.precision]
    with whole_folder(out) as folder:
        files = copy_tokenizer(run.build, folder)
        tensors = {key: tensor.to(dtype) for key, tensor in _tensors(run, model, shapes, trained)}
        if ties_head:  # peft reads it too; a file may not hold tensors that share memory
            tensors[adapter_key("lm_head", "weight")] = tensors[adapter_key(_TABLE, "weight")].clone()
        for key, tensor in tensors.items():
            check_finite(key, tensor)
        save_tensors(tensors, folder / WEIGHTS)
        weights = {WEIGHTS: file_facts(folder / WEIGHTS, sha256=True)}
        dora = any(lora.dora for lora in _lora(run).values())
        write_adapter_config(folder, base, groups, dora=dora, modules_to_save=saved, ties_head=ties_head)
        parameters = sum(tensor.numel() for tensor in tensors.values())
        facts = card_facts(
            model,
            run.config,
            run.build,
            out,
            step=run.checkpoint.step,
            earlier=run.stages,
            precision=precision or run.config.precision,
            parameters=parameters,
            extensions=run.extensions,
        )
        facts = replace(facts, weights_sha256=weights_sha256(weights))
        (folder / CARD).write_text(adapter_card(facts, base), encoding="utf-8")
        written = (path.name for path in sorted(folder.iterdir()) if path.name not in {*files, *weights, CARD})
        record = {
            "format": ADAPTER_FORMAT,
            "version": ADAPTER_VERSION,
            "files": to_json(files | weights | {name: file_facts(folder / name) for name in written}),
        }
        (folder / ADAPTER_RECORD).write_bytes(sealed(record, indent=2))
        size = sum(path.stat().st_size for path in folder.iterdir())
    return ExportedAdapter(folder=out, base=base, parameters=parameters, size_bytes=size, notes=run.notes)


def _lora(run: OpenedRun) -> dict[str, LoraConfig]:
    """Part -> settings of its adapters."""
    adapters = {"decoder": run.config.lora.decoder, "encoder": run.config.lora.encoder}
    return {part: lora for part, lora in adapters.items() if lora is not None}


def _refusal(run: OpenedRun, model: VisionChatModel) -> str | None:
    """Why an adapter cannot hold what the run trained."""
    config, lora = run.config, _lora(run)
    start = config.model.init_from
    if not lora:
        return "the run has no LoRA adapters"
    if start is None:
        return (
            "it is for the LLaVA folder that a run begins with at model.init_from, and this run began with an encoder "
            "and a decoder apart"
        )
    if llava_start(config.model) is None and read_record(Path(start)).form != "llava":
        return f"it is for a LLaVA folder, and {start}, with which the run began, is not one"
    if reasons := refusals(model, config.model):
        return f"peft loads it onto a LLaVA of transformers, and the trained model is not one: {'; '.join(reasons)}"
    if config.learning_rates.decoder is not None:
        return "learning_rates.decoder trained the whole decoder as well"
    if "encoder" in lora and config.learning_rates.encoder is not None:
        return "learning_rates.encoder trained the weights under the encoder's adapters as well"
    if lora.get("decoder") is not None and lora["decoder"].target_parameters:
        return "lora.decoder.target_parameters adapted experts, whose adapters it does not write"
    if len({each.dora for each in lora.values()}) > 1:
        return "only one of lora.decoder and lora.encoder has dora, and an adapter has it for all layers or none"
    return None


def _path(model: VisionChatModel, name: str, shapes: Mapping[str, object]) -> str:
    """The path in transformers' LLaVA, with the level that the installed release may have in the tower."""
    path, tower, level = module_path(model, name), "model.vision_tower.", "model.vision_tower.vision_model."
    has_level = any(each.startswith(level) for each in shapes)
    return path.replace(tower, level, 1) if has_level and path.startswith(tower) else path


def _groups(run: OpenedRun, model: VisionChatModel, shapes: Mapping[str, object]) -> list[AdapterLayers]:
    adapted = dict.fromkeys(name.partition(".lora_")[0] for name in run.checkpoint.shapes if ".lora_" in name)
    groups = []
    for part, lora in _lora(run).items():
        paths = tuple(_path(model, name, shapes) for name in adapted if name.startswith(f"{part}."))
        groups.append(
            AdapterLayers(paths=paths, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, rslora=lora.rslora)
        )
    return groups


def _trained(run: OpenedRun, model: VisionChatModel, shapes: Mapping[str, tuple[int, ...]]) -> list[_Parameter]:
    """Trained parameters that are not adapters'. Raises ConfigError if the folder's model has others."""
    trained = []
    for name, parameter in model.named_parameters():  # of tied parameters the first alone, as in the checkpoint
        path, shape = _path(model, name, shapes), tuple(parameter.shape)
        is_trained = name in run.checkpoint.shapes
        if (is_trained or _is_table(path)) and shapes.get(path) != shape:
            raise ConfigError(
                [
                    f"--adapter: {path} is {shape} in the trained model and {shapes.get(path)} in "
                    f"{run.config.model.init_from}; export without --adapter"
                ]
            )
        if is_trained:
            trained.append(_Parameter(name=name, path=path))
    return trained


def _is_table(path: str) -> bool:
    """Whether its size is the vocabulary's: a build may have added tokens."""
    return path.startswith((f"{_TABLE}.", "lm_head."))


def _whole_modules(trained: Collection[str], shapes: Collection[str]) -> list[str]:
    """The fewest modules that hold these parameters and no others, by their paths."""

    def is_trained(module: str) -> bool:
        return all(path in trained for path in shapes if path.startswith(f"{module}."))

    modules = set()
    for path in trained:
        module = path.rpartition(".")[0]
        while (parent := module.rpartition(".")[0]) and is_trained(parent):
            module = parent
        modules.add(module)
    return sorted(modules)


def _tensors(
    run: OpenedRun, model: VisionChatModel, shapes: Mapping[str, object], trained: list[_Parameter]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Key -> tensor of the adapter's file."""
    for name, tensor in run.checkpoint.weights():
        layer, is_adapter, rest = name.partition(".lora_")
        if is_adapter:
            yield adapter_key(_path(model, layer, shapes), f"lora_{rest}"), tensor
        for parameter in trained:
            if parameter.name == name:
                module, _, last = parameter.path.rpartition(".")
                yield adapter_key(module, last), tensor
