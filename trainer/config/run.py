"""What a training run is: one strict tree of dataclasses, with a sentence under every field.

Rule: all that can be known before the model is loaded is checked before it is loaded: `load_config` reads the file,
`check_ranks` holds it against the number of processes, trainer.training.preflight against the build. Each reports
every problem at once, by dotted path.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from dst.common.config import build, json_schema
from dst.common.config_class import Natural, Positive, Share, config_class
from dst.common.yaml_files import override, read_yaml
from dst.errors import ConfigError
from shards import Manifest
from trainer.config.model import LearningRates, LoraAdapters, ModelConfig, check_model_values, check_trained

RESOLVED = "config.yaml"
"""The file in a run's folder with its whole config"""

Beta = Annotated[float, Ge(0), Lt(1)]
NotNegative = Annotated[float, Ge(0)]


@config_class
class Expected:
    template: str | None = None
    """The template the build must have been compiled with: a built-in name or the path of a .jinja file."""
    tokenizer: str | None = None
    """The fingerprint of the build's tokenizer, or its first characters; see manifest.json."""
    manifest: str | None = None
    """The hash of the build's manifest, or its first characters: set it to pin the data to the last byte."""
    image_size: int | None = None
    """The side of the build's images in pixels."""


@config_class
class BatchConfig:
    global_batch_size: Positive = 16
    """Sequences of one optimizer step, over all ranks and accumulation steps: 1 rank and 8 ranks train the same."""
    micro_batch_size: Positive = 1
    """Sequences in one forward pass of one rank. Raise it until memory is full; gradient accumulation follows."""
    max_length: Annotated[int, Ge(2)] | None = None
    """Tokens of a sequence; default: the longest sample the build allows. Longer sequences hold more samples; a shorter
    length works if no sample is longer."""
    max_images: Positive | None = None
    """Most images in a sequence, or most tiles, which limits the encoder's memory; null sets no limit."""
    packed: bool = True
    """Pack several samples into a sequence; none attends to another. false: one sample each, padded to the longest."""
    shuffle: Literal["samples", "shards"] | None = None
    """samples: from a local disk. shards: from remote or rotating disks. Default: by where the build is stored."""
    cache_gb: Annotated[float, Gt(0)] | None = None
    """Most GB of a remote build on each machine's disk; null: nine tenths of what is free. If the build is larger, its
    shards are shuffled few at a time."""
    workers: Natural = 2
    """Processes of each rank that read and decode images ahead. 0 does it between the steps."""
    decode: Literal["exact", "fast"] = "exact"
    """fast is twice as fast where images are stored as they were, and differs by under 1.5/255 on average."""


@config_class
class OptimizerConfig:
    kind: Literal["adamw", "fused", "cpu"] = "adamw"
    """adamw: torch's. fused: torch's fused kernels, for CUDA. cpu: DeepSpeed's for offloading; needs a compiler."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Adam's two decay rates."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: NotNegative = 0.0
    """For matrices; norms, biases, embeddings and the output head are never decayed."""
    max_grad_norm: NotNegative | None = 1.0
    """Largest norm of all gradients together; null switches clipping off."""


@config_class
class ScheduleConfig:
    steps: Positive | None = None
    """Optimizer steps of the whole run."""
    epochs: Positive | None = None
    """The whole run in epochs of the blend, instead of in steps. Without both it is one epoch."""
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rates fall after the warmup."""
    warmup_ratio: Share = 0.03
    """Share of the steps over which the learning rates rise from nothing."""
    min_lr_ratio: Share = 0.0
    """Share of the learning rates that is left at the end; constant ignores it."""


@config_class
class ZeroConfig:
    stage: Annotated[int, Ge(0), Le(3)] = 2
    """What is partitioned across ranks: 0 nothing (fp32 only), 1 optimizer state, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """Keep optimizer state in the host's memory; needs stage 1 to 3, and is fast only with optimizer.kind: cpu."""
    offload_parameters: bool = False
    """Keep weights in the host's memory until a layer needs them; needs stage 3."""
    param_persistence_threshold: Natural | None = None
    """Stage 3 keeps weights of fewer elements whole on every rank; default: DeepSpeed's."""


@config_class
class DistributedConfig:
    start_timeout_s: Positive = 300
    """Seconds that ranks wait for each other at the start; then the run ends, and names those that are missing."""
    lost_after_s: Positive = 60
    """A rank that gives no sign of life for so many seconds is lost with its host or its network, and ends the run. One
    whose process ends is noticed at once."""


@config_class
class CheckpointConfig:
    every: Natural = 500
    """Optimizer steps between checkpoints; one is also written at the end. 0 writes that one alone."""
    keep: Positive = 2
    """How many of the newest are kept, in addition to the best."""
    resume: str = "auto"
    """auto: from the newest checkpoint below `out`, if any. never: refuse to. Or the folder of a checkpoint, or of a
    run for its newest one: another run's, to begin from it, or one of this run's, to go back to it."""


@config_class
class LoggingConfig:
    every: Positive = 10
    """Optimizer steps between lines of metrics.jsonl, TensorBoard and the terminal."""
    tensorboard: bool = True
    """Write TensorBoard files below `out`/tensorboard."""


@config_class
class EvaluationConfig:
    every: Natural = 0
    """Optimizer steps between evaluations on the held-out split; one also comes at the end. 0 switches both off."""
    max_batches: Positive | None = None
    """Most batches of micro_batch_size x ranks sequences in an evaluation, with samples of all datasets by their sizes
    and at least one of each; default: the whole split."""
    micro_batch_size: Positive | None = None
    """Sequences in one forward pass of one rank; default: as in training."""


@config_class
class TrainConfig:
    build: str
    """The build folder that dsvl-prep made, or its URL."""
    out: str
    """Folder for checkpoints and logs."""
    model: ModelConfig
    """Encoder, projector, decoder and attention."""
    learning_rates: LearningRates = field(default_factory=LearningRates)
    """What is trained, and how fast: a learning rate for each part of the model; null freezes a part."""
    lora: LoraAdapters = field(default_factory=LoraAdapters)
    """LoRA adapters: low-rank updates next to frozen weights."""
    expect: Expected = field(default_factory=Expected)
    """What the build must be; checked before the model is loaded."""
    seed: Natural = 0
    """Decides the order of samples, new weights and dropout."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of weights and activations; optimizer state is always fp32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third slower, far less memory."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """How much goes into a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How long, and the course of the learning rates."""
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    """DeepSpeed ZeRO: what is partitioned across ranks."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Runs of several processes: how long they wait for each other."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What is written when, and from where a run resumes."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """What is logged while it runs."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """The loss on the held-out split."""


def load_config(path: Path, settings: Sequence[str] = ()) -> TrainConfig:
    """Read and check a file with `a.b=value` settings applied. Raises ConfigError with all problems.

    `build`, `out` and other paths of the file are relative to the current folder.
    """
    return config_from(read_tree(path, settings), path.name)


def read_tree(path: Path, settings: Sequence[str]) -> dict[str, Any]:
    """A file with `a.b=value` settings applied, not yet checked. Raises ConfigError if it or they cannot be read."""
    tree = read_yaml(path)
    override(tree, settings)
    return tree


def config_from(tree: Mapping[str, Any], where: str) -> TrainConfig:
    """The config in parsed YAML or JSON. Raises ConfigError with all problems."""
    config, problems = build(TrainConfig, tree, check=_check)
    if problems or config is None:
        raise ConfigError([f"{where}: {problem}" for problem in problems])
    return dataclasses.replace(config, out=os.path.expanduser(config.out))


def train_schema() -> dict[str, Any]:
    """The JSON schema of train.yaml. A model has an encoder and a decoder, or `init_from` to take them from."""
    schema = json_schema(TrainConfig)
    model = schema["$defs"]["ModelConfig"]
    model["anyOf"] = [{"required": model.pop("required")}, {"required": ["init_from"]}]
    return schema


def to_tree(config: object) -> dict[str, Any]:
    """The config as YAML or JSON can hold it; config_from reads it again."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return value

    tree: dict[str, Any] = plain(dataclasses.asdict(config))  # type: ignore[call-overload]
    return tree


def check_ranks(config: TrainConfig, world_size: int) -> list[str]:
    """Problems between the config and the number of ranks."""
    whole, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    if whole % (micro * world_size):
        ranks = "rank" if world_size == 1 else "ranks"
        fits = [count for count in range(1, whole // world_size + 1) if whole % (count * world_size) == 0]
        step = (
            f"set batch.micro_batch_size to one of {', '.join(map(str, fits))}"
            if fits
            else f"set batch.global_batch_size to a multiple of {world_size}"
        )
        return [
            f"batch.global_batch_size: got {whole}, which {world_size} {ranks} cannot share by batch.micro_batch_size "
            f"{micro}; expected a multiple of {micro * world_size}; {step}, or change the number of ranks"
        ]
    return []


def accumulation(config: TrainConfig, world_size: int) -> int:
    """Micro-batches of one optimizer step."""
    return config.batch.global_batch_size // (config.batch.micro_batch_size * world_size)


def sequence_length(config: TrainConfig, manifest: Manifest) -> int:
    """Tokens of a packed sequence."""
    return config.batch.max_length or manifest.config.limits.max_length


def _check(config: TrainConfig) -> list[str]:
    """Problems between keys."""
    optimizer, schedule, zero = config.optimizer, config.schedule, config.zero
    problems = [*check_model_values(config.model), *check_trained(config.learning_rates, config.lora)]
    if schedule.steps is not None and schedule.epochs is not None:
        problems.append("schedule: got both steps and epochs; expected one of them")
    if zero.stage == 0 and config.precision != "fp32":
        problems.append(
            f"zero.stage: 0 cannot train in {config.precision}: Adam's step counter runs one ahead there, so the run "
            "would differ from every other stage; set zero.stage: 1 (the same on one rank), or precision: fp32"
        )
    if zero.stage == 3 and config.lora.decoder is not None and config.lora.decoder.target_parameters:
        problems.append("lora.decoder.target_parameters: got zero.stage 3, which partitions them; set zero.stage: 2")
    if zero.offload_optimizer and zero.stage == 0:
        problems.append("zero.offload_optimizer: needs zero.stage 1, 2 or 3")
    if zero.offload_parameters and zero.stage != 3:
        problems.append(f"zero.offload_parameters: needs zero.stage: 3, got {zero.stage}")
    if config.lora.quantize_decoder is not None and zero.stage == 3:
        problems.append(
            "lora.quantize_decoder: 4-bit weights cannot be partitioned by zero.stage: 3; expected 0, 1 or 2"
        )
    if optimizer.kind == "cpu" and not zero.offload_optimizer:
        problems.append("optimizer.kind: cpu works on offloaded state alone; set zero.offload_optimizer: true too")
    if optimizer.kind == "fused" and zero.offload_optimizer:
        problems.append("optimizer.kind: fused does not work on offloaded state; expected cpu or adamw")
    return [*problems, *check_ranks(config, 1)]
