"""The parts `model`, `learning_rates` and `lora` of train.yaml: encoder, projector and decoder, and what is trained.

Nothing here loads torch. What can be told from the values alone is checked here; what needs the models' own
configuration, or the build, is checked by `trainer.model.vision_chat.check_model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    kind: Literal["open_clip", "hf", "qwen_vl", "tiny"] = "open_clip"
    """open_clip: any of its ViTs; hf: CLIP, SigLIP or DINOv2 of transformers; qwen_vl: QWen-VL's; tiny: random."""
    name: str | None = None
    """open_clip: a model of `open_clip.list_models()`, local-dir:FOLDER or hf-hub:ID. hf: a folder or a hub id."""
    weights: str | None = None
    """open_clip: a pretrained tag or a weights file. qwen_vl: the .safetensors that tools/extract_qwen_vl.py wrote."""
    config: dict[str, Any] = field(default_factory=dict)
    """The architecture itself, instead of a name: weights are random. For tiny and qwen_vl, sizes that differ."""
    layer: int | None = None
    """Whose output is read: 1 is the first, -1 the last. Unset: -2 as LLaVA does; qwen_vl reads its resampler."""
    class_token: bool = False
    """true keeps the class token in front of the patches, which makes one more token an image."""
    image_size: int | None = None
    """hf and qwen_vl: another side in pixels than the weights were made for; position embeddings are interpolated."""
    mean: tuple[float, ...] | None = None
    """Mean of red, green and blue, from 0 to 1, where the weights do not say it themselves."""
    std: tuple[float, ...] | None = None
    """Standard deviation of red, green and blue; set it together with mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorConfig:
    kind: Literal["linear", "mlp", "perceiver", "vit"] = "mlp"
    """linear: Linear + LayerNorm; mlp: LLaVA-1.5's; perceiver: learnt queries; vit: an encoder layer, then Linear."""
    num_queries: int = 64
    """perceiver: tokens an image becomes; must be the build's image_tokens. The others keep the encoder's number."""
    num_layers: int = 2
    """perceiver: cross-attention layers."""
    num_heads: int = 16
    """perceiver and vit: attention heads; must divide the encoder's width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    name: str | None = None
    """A folder or a hub id of a causal language model. Exactly one of name, preset and config."""
    preset: str | None = None
    """A small random decoder for tests and demos: tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3 or tiny_smollm3."""
    config: dict[str, Any] = field(default_factory=dict)
    """A random decoder of these sizes; the keys of transformers' config.json, model_type among them."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """What computes causal attention; flex_attention needs CUDA, eager compares. mmca has kernels of its own."""

    @property
    def portable_attn_implementation(self) -> Literal["sdpa", "eager"]:
        """The kernel where there may be no GPU. Some decoders know eager alone."""
        return "eager" if self.attn_implementation == "eager" else "sdpa"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    init_from: str | None = None
    """A folder that dsvl-train export wrote, to begin with its model: a second stage on other data, with other parts
    trained. It says what all parts are; attention and decoder.attn_implementation alone may stand beside it."""
    encoder: EncoderConfig
    """What sees."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """What turns the encoder's output into the decoder's input."""
    decoder: DecoderConfig
    """What reads and writes."""
    attention: Literal["mmca", "causal"] = "mmca"
    """mmca: text attends to text and to images apart, images to nothing. causal: as the decoder was pretrained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    rank: int = 16
    """Width of the low-rank update; more learns more and takes more memory."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; twice the rank is a usual choice."""
    dropout: float = 0.0
    """Share of an adapter's inputs dropped in training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """all-linear, a list of module names or their last parts ([q_proj, v_proj]), or a regex of whole names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    encoder: float | None = None
    """The encoder's learning rate; null keeps it frozen. 2e-6 is usual for full training."""
    projector: float | None = 1e-3
    """The projector's learning rate. Its weights start random, so every first run trains it."""
    embeddings: float | None = None
    """Learning rate of the decoder's input embeddings and of its output head."""
    decoder: float | None = None
    """Learning rate of everything else in the decoder; 2e-5 is usual for full training."""
    lora: float = 2e-4
    """Learning rate of the LoRA adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAdapters:
    decoder: LoraConfig | None = None
    """LoRA adapters in the decoder, so that its own weights can stay frozen; {} takes the defaults."""
    encoder: LoraConfig | None = None
    """LoRA adapters in the encoder."""


def check_model_values(config: ModelConfig) -> list[str]:
    """What is wrong with the values themselves, one line each, by dotted path below the file's top."""
    return [*_check_encoder(config.encoder), *_check_projector(config.projector), *_check_decoder(config.decoder)]


def check_trained(rates: LearningRates, adapters: LoraAdapters) -> list[str]:
    """What is wrong with the values of `learning_rates` and `lora`, one line each."""
    problems = []
    by_component = {name: getattr(rates, name) for name in ("encoder", "projector", "embeddings", "decoder", "lora")}
    problems += [
        f"learning_rates.{name}: got {rate}; wanted a learning rate above 0, or null to freeze it"
        for name, rate in by_component.items()
        if rate is not None and rate <= 0
    ]
    for name in ("decoder", "encoder"):
        lora: LoraConfig | None = getattr(adapters, name)
        if lora is not None:
            checks = (
                ("rank", lora.rank >= 1, "at least 1"),
                ("alpha", lora.alpha > 0, "more than 0"),
                ("dropout", 0 <= lora.dropout < 1, "0 up to, not including, 1"),
                ("target_modules", bool(lora.target_modules), "all-linear, names, or a regex"),
            )
            problems += [
                f"lora.{name}.{field_name}: got {getattr(lora, field_name)!r}; wanted {wanted}"
                for field_name, holds, wanted in checks
                if not holds
            ]
    trains = any(by_component[name] is not None for name in by_component if name != "lora")
    if not trains and adapters.decoder is None and adapters.encoder is None:
        problems.append(
            "learning_rates: nothing is trained; set a learning rate for projector, decoder, embeddings or encoder, or "
            "add adapters with lora: {decoder: {}}"
        )
    return problems


def _check_encoder(encoder: EncoderConfig) -> list[str]:
    problems = []

    def want(holds: bool, field_name: str, wanted: str) -> None:
        if not holds:
            problems.append(f"model.encoder.{field_name}: got {getattr(encoder, field_name)!r}; wanted {wanted}")

    kind = encoder.kind
    named = kind in ("open_clip", "hf")
    want(named or encoder.name is None, "name", f"none, since {kind} encoders have no name")
    if named and (encoder.name is None) == (not encoder.config):
        got = "both" if encoder.config else "neither"
        problems.append(f"model.encoder: got {got} of name and config; wanted exactly one for {kind}")
    loads_file = kind == "qwen_vl" or (kind == "open_clip" and encoder.name is not None and ":" not in encoder.name)
    want(loads_file or encoder.weights is None, "weights", f"none: {_WEIGHTS_FROM[kind]}")
    needs_file = loads_file and not encoder.config
    want(not needs_file or encoder.weights is not None, "weights", _WEIGHTS_WANTED.get(kind, ""))
    want(encoder.layer != 0, "layer", "1 for the first layer's output, or -1 for the last's")
    want(kind != "qwen_vl" or encoder.layer is None, "layer", "none: QWen-VL's resampler reads the last layer")
    want(kind != "qwen_vl" or not encoder.class_token, "class_token", "false: QWen-VL's tower has no class token")
    sized = kind in ("hf", "qwen_vl")
    want(encoder.image_size is None or sized, "image_size", f"none; {_SIZE_FROM.get(kind, '')}")
    want(encoder.image_size is None or encoder.image_size > 0, "image_size", "at least 1")
    for name in ("mean", "std"):
        values = getattr(encoder, name)
        want(values is None or len(values) == 3, name, "three numbers: red, green, blue")
    want(encoder.std is None or all(value > 0 for value in encoder.std), "std", "numbers above 0")
    if (encoder.mean is None) != (encoder.std is None):
        problems.append("model.encoder: got only one of mean and std; wanted both or none")
    return problems


_WEIGHTS_FROM = {
    "open_clip": "a config gives random weights, and a folder or hub id holds its own",
    "hf": "the folder or hub id in name holds them",
    "tiny": "a tiny encoder is random",
    "qwen_vl": "",
}
_WEIGHTS_WANTED = {
    "open_clip": "a pretrained tag such as openai, or a weights file",
    "qwen_vl": "the file that tools/extract_qwen_vl.py writes",
}
_SIZE_FROM = {
    "open_clip": "choose the model that was made for the size, such as ViT-L-14-336",
    "tiny": "set config: {image_size: ...}",
}


def _check_projector(projector: ProjectorConfig) -> list[str]:
    return [
        f"model.projector.{name}: got {value}; wanted at least 1"
        for name in ("num_queries", "num_layers", "num_heads")
        if (value := getattr(projector, name)) < 1
    ]


def _check_decoder(decoder: DecoderConfig) -> list[str]:
    given = [name for name in ("name", "preset", "config") if getattr(decoder, name)]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        return [f"model.decoder: got {got} of name, preset and config; wanted exactly one"]
    if decoder.config and not isinstance(decoder.config.get("model_type"), str):
        return ["model.decoder.config.model_type: missing; wanted an architecture of transformers, such as llama"]
    return []
