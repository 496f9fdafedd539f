"""Write a trained model as a folder for other programs: weights, configuration, tokenizer, processor, model card.

A causal model with the parts of LLaVA or InternVL becomes a standard folder of that family. Any other model gets the
`model_type` of trainer.model_io.own_config, which transformers knows after `import trainer`, and refuses with the
reason without it. `trainer.load` opens all of them.

The rule: the folder is complete or missing. It is written under a temporary name, flushed to disk and then renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shards import Build
from shards.typed_json import to_json
from trainer.config.extensions import KEY as EXTENSIONS
from trainer.config.extensions import model_extensions
from trainer.config.run import TrainConfig, to_tree
from trainer.export.folder import check_out, copy_tokenizer, whole_folder
from trainer.export.form import own_form, standard_form
from trainer.export.generation_config import generation_config
from trainer.export.model_card import CardFacts, model_card, weights_sha256
from trainer.export.streamed import streamed
from trainer.model.build_model import portable_config
from trainer.model.vision_chat import VisionChatModel
from trainer.model_io.digests import file_facts, sealed
from trainer.model_io.llava_folder import model_title, without_origin
from trainer.model_io.load import DTYPES
from trainer.model_io.processor import EXACT, differences
from trainer.model_io.record import CARD, FORMAT, RECORD, VERSION, Form
from trainer.model_io.safetensors_files import write_weights
from trainer.model_io.standard_check import copy_refusal, folder_refusal
from trainer.model_io.standard_models import standard_model
from trainer.model_io.standard_parts import hf_config_dict
from trainer.model_io.tiled_processor import tile_refusals
from trainer.training.restore import open_run

SHARD_BYTES = 4 << 30
"""Size of a file of weights"""

_LOCAL = ("build", "out", "expect")
"""Sections of the config that contain paths of this machine, or checks that were made before"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written. refusals: why it is not a folder of LLaVA or InternVL; empty if it is one."""

    folder: Path
    form: Form
    refusals: tuple[str, ...]
    parameters: int
    size_bytes: int
    notes: tuple[str, ...] = ()
    """A line for each part whose code is not the one that trained it"""


def export(
    location: Path,
    out: Path,
    *,
    build: str | None = None,
    init_from: str | None = None,
    precision: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    allow_extensions: Collection[str] = (),
) -> Exported:
    """Export the checkpoint that trainer.training.restore finds at `location`.

    build, init_from, allow_extensions: as trainer.training.restore takes them.

    precision: bf16, fp16 or fp32; default: as trained. Raises ConfigError, ShardError or TrainError if anything needed
    is missing or damaged, or if `out` is not empty.
    """
    check_out(out)
    run = open_run(location, build=build, init_from=init_from, allow_extensions=allow_extensions)
    model = streamed(run)
    exported = export_model(
        model.model,
        run.config,
        run.build,
        out,
        step=run.checkpoint.step,
        earlier=run.stages,
        precision=precision or run.config.precision,
        shard_bytes=shard_bytes,
        extensions=run.extensions,
        value=model.value,
    )
    return replace(exported, notes=run.notes)


def export_model(
    model: VisionChatModel,
    config: TrainConfig,
    build: Build,
    out: Path,
    *,
    step: int,
    earlier: Sequence[Mapping[str, Any]] = (),
    precision: str = "fp32",
    shard_bytes: int = SHARD_BYTES,
    extensions: Mapping[str, Mapping[str, Any]] | None = None,
    value: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> Exported:
    """Write a model whose adapters are merged and which was trained on `build`.

    earlier: the stages before it, see trainer.checkpoint.init_from. extensions: the code that it was trained with, by
    part, see trainer.config.extensions; default: the code that is installed. value: the values of a tensor that may be
    on the meta device, see trainer.export.streamed. Raises as `export` does.
    """
    write = partial(
        _export_form,
        model,
        config,
        build,
        out,
        step=step,
        earlier=earlier,
        precision=precision,
        shard_bytes=shard_bytes,
        extensions=model_extensions(to_tree(config.model)) if extensions is None else extensions,
        value=value,
    )
    reasons = standard_model(config.model).refusals(model, config.model)
    exported = write(reasons=reasons + tile_refusals(build.manifest.config.image))
    if isinstance(exported, str):
        exported = write(reasons=[exported])
        assert isinstance(exported, Exported)  # only a standard folder is refused
    return exported


def _export_form(
    model: VisionChatModel,
    config: TrainConfig,
    build: Build,
    out: Path,
    *,
    reasons: list[str],
    step: int,
    earlier: Sequence[Mapping[str, Any]],
    precision: str,
    shard_bytes: int,
    extensions: Mapping[str, Mapping[str, Any]],
    value: Callable[[torch.Tensor], torch.Tensor],
) -> Exported | str:
    """Write a standard folder if there are no reasons against it.

    Returns why transformers' own class does not open what was written as a standard folder; then it was removed again.
    """
    dtype = DTYPES[precision]
    standard = standard_model(config.model)
    if not reasons:
        converted = standard.convert(model)
        refusal = copy_refusal(converted, config.model, standard)
        model, reasons = (converted, []) if refusal is None else (model, [refusal])
    parts = _model_tree(config, model)
    if reasons:
        form = own_form(model, build, parts=parts, extensions=extensions, refusals=reasons, dtype=dtype)
    else:
        form = standard_form(model, build, standard, dtype=dtype)
    facts = card_facts(
        model,
        config,
        build,
        out,
        form=form.form,
        refusals=reasons,
        precision=precision,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        step=step,
        earlier=earlier,
        extensions=extensions,
    )
    num_rows = model.decoder.get_output_embeddings().weight.shape[0]
    with whole_folder(out) as folder:
        files = copy_tokenizer(build, folder, form.tokenizer)
        weights = write_weights(folder, form.tensors, max_bytes=shard_bytes, dtype=dtype, value=value)
        files |= {name: replace(facts_of_file, sha256=None) for name, facts_of_file in weights.items()}
        facts = replace(facts, weights_sha256=weights_sha256(weights))
        trees = {
            "generation_config.json": generation_config(folder, build.manifest, num_rows),
            **form.files,
        }
        for name, tree in trees.items():
            (folder / name).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / CARD).write_text(model_card(facts), encoding="utf-8")
        other_files = {name: file_facts(folder / name) for name in trees}
        record = {**_record(facts, parts), "files": to_json(files), "other_files": to_json(other_files)}
        (folder / RECORD).write_bytes(sealed(record, indent=2))
        if not reasons and (refusal := folder_refusal(folder, model, standard)):
            shutil.rmtree(folder)
            return refusal
        size = sum(path.stat().st_size for path in folder.iterdir())
    return Exported(folder=out, form=form.form, refusals=tuple(reasons), parameters=facts.parameters, size_bytes=size)


def card_facts(
    model: VisionChatModel,
    config: TrainConfig,
    build: Build,
    out: Path,
    *,
    form: Form = "llava",
    refusals: Sequence[str] = (),
    precision: str,
    parameters: int,
    step: int,
    earlier: Sequence[Mapping[str, Any]],
    extensions: Mapping[str, Mapping[str, Any]],
) -> CardFacts:
    """What the card of an export or of an adapter says; arguments are those of `export_model`."""
    return CardFacts(
        name=out.resolve().name,
        form=form,
        refusals=refusals,
        differences=[EXACT] if refusals else differences(build.manifest.config.image, model.encoder),
        precision=precision,
        parameters=parameters,
        image_tokens=model.image_tokens,
        build=build.manifest.facts(),
        training=_training(config, earlier),
        step=step,
        earlier=earlier,
        extensions=extensions,
    )


def _record(facts: CardFacts, model: Mapping[str, Any]) -> dict[str, Any]:
    """The record that trainer.model_io.load reads, without the lists of files."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "form": facts.form,
        "precision": facts.precision,
        "step": facts.step,
        "model": model,
        "build": to_json(facts.build),
        "training": facts.training,
        "earlier": list(facts.earlier),
        **({EXTENSIONS: facts.extensions} if facts.extensions else {}),
    }


def _model_tree(config: TrainConfig, model: VisionChatModel) -> dict[str, Any]:
    """The architecture, without the origin of weights, and with a kernel that every machine has."""
    portable = portable_config(config.model, model)
    attn_implementation = config.model.decoder.portable_attn_implementation
    decoder = replace(portable.decoder, attn_implementation=attn_implementation, config=hf_config_dict(model.decoder))
    encoder = replace(portable.encoder, config=without_origin(portable.encoder.config))
    return to_tree(replace(portable, encoder=encoder, decoder=decoder))


def _training(config: TrainConfig, earlier: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The config without paths of this machine. An earlier stage is in the record; a LLaVA of others is named."""
    tree = {key: value for key, value in to_tree(config).items() if key not in _LOCAL}
    start = config.model.init_from
    named = None if start is None or earlier else model_title(start)
    return {**tree, "model": {**tree["model"], "init_from": named}}
