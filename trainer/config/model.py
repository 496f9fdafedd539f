"""The parts `model`, `learning_rates` and `lora` of train.yaml: encoder, projector and decoder, and what is trained.

Nothing here loads torch. What the values alone show is checked here; what needs the models' own
configuration, or the build, is checked by `trainer.model.build_model.check_model`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MaxLen, MinLen

from dst.common.config_class import AlsoCalled, FreeKeys, Positive, Suggested, config_class
from dst.common.extensions import name_problems
from trainer.config.kinds import ENCODER_KINDS, ENCODER_POINT, PROJECTOR_KINDS, PROJECTOR_POINT

Rate = Annotated[float, Gt(0)]
Deviation = Annotated[float, Gt(0)]
Name = Annotated[str, MinLen(1)]


@config_class
class EncoderConfig:
    kind: Annotated[str, Suggested(ENCODER_KINDS)] = "open_clip"
    """open_clip: any of its ViTs; hf: CLIP, SigLIP, DINOv2 or InternViT of transformers; qwen_vl: QWen-VL's; tiny:
    random; or an encoder of your own as my_package.my_module:ENCODER."""
    name: str | None = None
    """open_clip: a model of `open_clip.list_models()`, local-dir:FOLDER or hf-hub:ID. hf: a folder or a hub id."""
    weights: str | None = None
    """open_clip: a pretrained tag or a weights file. qwen_vl: the .safetensors that tools/extract_qwen_vl.py wrote."""
    config: FreeKeys = field(default_factory=dict)
    """The architecture itself, instead of a name: weights are random. For tiny and qwen_vl, sizes that differ. For your
    own encoder, its settings."""
    layer: int | None = None
    """Whose output is read: 1 is the first, -1 the last. Unset: -2 as LLaVA does; qwen_vl reads its resampler."""
    class_token: bool = False
    """true keeps the class token in front of the patches, which makes one more token an image."""
    image_size: Positive | None = None
    """hf and qwen_vl: another side in pixels than the weights were made for; position embeddings are interpolated."""
    mean: Annotated[tuple[float, ...], MinLen(3), MaxLen(3)] | None = None
    """Mean of red, green and blue, from 0 to 1, where the weights do not say it themselves."""
    std: Annotated[tuple[Deviation, ...], MinLen(3), MaxLen(3)] | None = None
    """Standard deviation of red, green and blue; set it together with mean."""


@config_class
class ProjectorConfig:
    kind: Annotated[str, Suggested(PROJECTOR_KINDS)] = "mlp"
    """linear: Linear + LayerNorm; mlp: LLaVA-1.5's; perceiver: learned queries; pixel_shuffle: InternVL's, a quarter of
    the tokens; vit: an encoder layer, then Linear; or a projector of your own as my_package.my_module:PROJECTOR."""
    num_queries: Positive = 64
    """perceiver: tokens an image becomes; must be the build's image_tokens. The others keep the encoder's number."""
    num_layers: Positive = 2
    """perceiver: cross-attention layers."""
    num_heads: Positive = 16
    """perceiver and vit: attention heads; must divide the encoder's width."""
    config: FreeKeys = field(default_factory=dict)
    """The settings of your own projector; dsvl's have none but the keys above."""


@config_class
class DecoderConfig:
    name: str | None = None
    """A folder or a hub id of a causal language model. Exactly one of name, preset and config."""
    preset: str | None = None
    """A small random decoder for tests and demos: tiny_llama, tiny_mistral, tiny_qwen2, tiny_qwen3 or tiny_smollm3."""
    config: FreeKeys = field(default_factory=dict)
    """A random decoder of these sizes; the keys of transformers' config.json, model_type among them."""
    attn_implementation: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """What computes causal attention; flex_attention needs CUDA, eager compares. mmca has kernels of its own."""

    @property
    def portable_attn_implementation(self) -> Literal["sdpa", "eager"]:
        """The kernel where there may be no GPU. Some decoders know eager alone."""
        return "eager" if self.attn_implementation == "eager" else "sdpa"


@config_class
class ModelConfig:
    init_from: str | None = None
    """A folder that dsvl-train export wrote, or a LLaVA folder or hub id of transformers, to begin with its model. It
    decides all parts; only attention and decoder.attn_implementation may be set next to it."""
    encoder: EncoderConfig
    """What sees."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """What turns the encoder's output into the decoder's input."""
    decoder: DecoderConfig
    """What reads and writes."""
    attention: Literal["mmca", "causal"] = "mmca"
    """mmca: text attends to text and to images apart, images to nothing. causal: as the decoder was pretrained."""


@config_class
class LoraConfig:
    rank: Annotated[Positive, AlsoCalled("r")] = 16
    """Width of the low-rank update; more learns more and takes more memory."""
    alpha: Annotated[float, Gt(0), AlsoCalled("lora_alpha")] = 32.0
    """The update is scaled by alpha / rank; twice the rank is a usual choice."""
    dropout: Annotated[float, Ge(0), Lt(1), AlsoCalled("lora_dropout")] = 0.0
    """Share of an adapter's inputs dropped in training."""
    target_modules: Name | Annotated[tuple[Name, ...], MinLen(1)] = "all-linear"
    """all-linear, a list of module names or their last parts ([q_proj, v_proj]), or a regex of whole names."""
    target_parameters: tuple[Name, ...] = ()
    """decoder: parameters that are not a linear layer's, as the experts of mixtures are ([gate_up_proj, down_proj]);
    names or their last parts. peft adapts them without dropout, dora and ZeRO stage 3."""
    rslora: Annotated[bool, AlsoCalled("use_rslora")] = False
    """Scale the update by alpha / sqrt(rank) instead (rsLoRA), so that a high rank does not shrink it."""
    dora: Annotated[bool, AlsoCalled("use_dora")] = False
    """Train the magnitude of every output apart from its direction (DoRA): closer to full training, slower."""
    init: Annotated[Literal["kaiming", "gaussian", "orthogonal"], AlsoCalled("init_lora_weights")] = "kaiming"
    """How adapters begin; each begins as no change. orthogonal needs an even rank."""
    modules_to_save: tuple[Name, ...] = ()
    """Modules trained in full next to the adapters, with learning_rates.lora; module names or their last parts
    ([embed_tokens, lm_head])."""


@config_class
class LearningRates:
    encoder: Rate | None = None
    """The encoder's learning rate; null keeps it frozen. 2e-6 is usual for full training."""
    projector: Rate | None = 1e-3
    """The projector's learning rate. Its weights start random, so every first run trains it."""
    embeddings: Rate | None = None
    """Learning rate of the decoder's input embeddings and of its output head."""
    decoder: Rate | None = None
    """Learning rate of everything else in the decoder; 2e-5 is usual for full training."""
    lora: Rate = 2e-4
    """Learning rate of the LoRA adapters, and of lora's modules_to_save."""


@config_class
class LoraAdapters:
    decoder: LoraConfig | None = None
    """LoRA adapters in the decoder, so that its own weights can stay frozen; {} takes the defaults."""
    encoder: LoraConfig | None = None
    """LoRA adapters in the encoder."""
    quantize_decoder: Literal["nf4"] | None = None
    """nf4: hold the decoder's linear layers in 4 bits while training (QLoRA): about a quarter of their memory. Needs
    lora.decoder, a decoder that is frozen otherwise, zero.stage 0 to 2, and pip install 'dsvl[qlora]'."""


def check_model_values(config: ModelConfig) -> list[str]:
    """What is wrong with the values themselves, one line each, by dotted path below the file's top."""
    return [*_check_encoder(config.encoder), *_check_projector(config.projector), *_check_decoder(config.decoder)]


def check_trained(rates: LearningRates, adapters: LoraAdapters) -> list[str]:
    """What is wrong between `learning_rates` and `lora`, one line each."""
    problems = [*_check_lora(adapters.decoder, "lora.decoder"), *_check_lora(adapters.encoder, "lora.encoder")]
    if adapters.quantize_decoder is not None:
        if adapters.decoder is None:
            problems.append("lora.quantize_decoder: needs adapters in the decoder; set lora.decoder: {}")
        if rates.decoder is not None:
            problems.append(
                f"lora.quantize_decoder: needs a frozen decoder, but learning_rates.decoder is {rates.decoder}; set it "
                "to null, or remove lora.quantize_decoder"
            )
    trained = (rates.encoder, rates.projector, rates.embeddings, rates.decoder)
    if any(rate is not None for rate in trained) or adapters.decoder is not None or adapters.encoder is not None:
        return problems
    return [
        "learning_rates: nothing is trained; set a learning rate for projector, decoder, embeddings or encoder, or add "
        "adapters with lora: {decoder: {}}"
    ]


def _check_lora(lora: LoraConfig | None, where: str) -> list[str]:
    if lora is None:
        return []
    problems = []
    if lora.init == "orthogonal" and lora.rank % 2:
        problems.append(f"{where}.rank: got {lora.rank}; expected an even rank, since init is orthogonal")
    if lora.target_parameters and where != "lora.decoder":
        problems.append(f"{where}.target_parameters: expected none, since encoders have no experts; remove it")
    if lora.target_parameters and (lora.dropout or lora.dora):
        problems.append(f"{where}.target_parameters: peft adapts them without dropout and dora; remove those keys")
    return problems


def _check_encoder(encoder: EncoderConfig) -> list[str]:
    problems = []

    def want(holds: bool, field_name: str, expected: str) -> None:
        if not holds:
            problems.append(f"model.encoder.{field_name}: got {getattr(encoder, field_name)!r}; expected {expected}")

    kind = encoder.kind
    want(encoder.layer != 0, "layer", "1 for the first layer's output, or -1 for the last's")
    if (encoder.mean is None) != (encoder.std is None):
        problems.append("model.encoder: got only one of mean and std; expected both or none")
    if kind not in ENCODER_KINDS:  # an extension checks its own settings
        return [*name_problems(ENCODER_POINT, kind, "model.encoder.kind"), *problems]
    named = kind in ("open_clip", "hf")
    want(named or encoder.name is None, "name", f"none, since {kind} encoders have no name")
    if named and (encoder.name is None) == (not encoder.config):
        got = "both" if encoder.config else "neither"
        problems.append(f"model.encoder: got {got} of name and config; expected exactly one for {kind}")
    loads_file = kind == "qwen_vl" or (kind == "open_clip" and encoder.name is not None and ":" not in encoder.name)
    want(loads_file or encoder.weights is None, "weights", f"none: {_WEIGHTS_FROM[kind]}")
    needs_file = loads_file and not encoder.config
    want(not needs_file or encoder.weights is not None, "weights", _WEIGHTS_EXPECTED.get(kind, ""))
    want(kind != "qwen_vl" or encoder.layer is None, "layer", "none: QWen-VL's resampler reads the last layer")
    want(kind != "qwen_vl" or not encoder.class_token, "class_token", "false: QWen-VL's tower has no class token")
    sized = kind in ("hf", "qwen_vl")
    want(encoder.image_size is None or sized, "image_size", f"none; {_SIZE_FROM.get(kind, '')}")
    return problems


def _check_projector(projector: ProjectorConfig) -> list[str]:
    kind = projector.kind
    if kind not in PROJECTOR_KINDS:
        return name_problems(PROJECTOR_POINT, kind, "model.projector.kind")
    if projector.config:
        return [f"model.projector.config: got {projector.config!r}; expected none, since {kind} has no settings there"]
    return []


_WEIGHTS_FROM = {
    "open_clip": "a config gives random weights, and a folder or hub id holds its own",
    "hf": "the folder or hub id in name holds them",
    "tiny": "a tiny encoder is random",
    "qwen_vl": "",
}
_WEIGHTS_EXPECTED = {
    "open_clip": "a pretrained tag such as openai, or a weights file",
    "qwen_vl": "the file that tools/extract_qwen_vl.py writes",
}
_SIZE_FROM = {
    "open_clip": "choose the model that was made for the size, such as ViT-L-14-336",
    "tiny": "set config: {image_size: ...}",
}


def _check_decoder(decoder: DecoderConfig) -> list[str]:
    sources = [name for name in ("name", "preset", "config") if getattr(decoder, name)]
    if len(sources) != 1:
        got = " and ".join(sources) or "none"
        return [f"model.decoder: got {got} of name, preset and config; expected exactly one"]
    if decoder.config and not isinstance(decoder.config.get("model_type"), str):
        return ["model.decoder.config.model_type: missing; expected an architecture of transformers, such as llama"]
    return []
