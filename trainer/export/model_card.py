"""The README.md of an exported model: what it is, how to use it, and the data and settings of its training.

It is a draft. What only its authors know (licences, intended use) is marked as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from shards.format.manifest import BuildFacts
from trainer.model_io.digests import FileFacts
from trainer.model_io.processor import is_tiled
from trainer.model_io.record import Form
from trainer.model_io.standard_models import STANDARD_MODELS


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """The contents of the card.

    form: of the folder, or of the one that an adapter is for. refusals: why it is not a standard folder. training: the
    config, without paths of this machine. earlier: the stages before this one, see trainer.checkpoint.init_from.
    extensions: the code of other packages that it needs, by part, see trainer.config.extensions.
    """

    name: str
    form: Form
    refusals: Sequence[str]
    differences: Sequence[str]
    precision: str
    parameters: int
    image_tokens: int
    build: BuildFacts
    training: Mapping[str, Any]
    step: int
    earlier: Sequence[Mapping[str, Any]] = ()
    extensions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights_sha256: Mapping[str, str] = field(default_factory=dict)
    """File of weights -> its sha256"""


def model_card(facts: CardFacts) -> str:
    """The card in Markdown, with the header that model hubs read."""
    parts = [
        _header(facts),
        _title(facts),
        _use(facts),
        data_section(facts),
        training_section(facts),
        files_section(facts),
        licence_section(facts),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _header(facts: CardFacts) -> str:
    kind = "mmca" if facts.training["model"]["attention"] == "mmca" else "causal"
    head = {
        "library_name": "dsvl" if facts.refusals else "transformers",
        "license": "other",
        "pipeline_tag": "image-text-to-text",
        "tags": ["dsvl", "vision-language", kind],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _title(facts: CardFacts) -> str:
    model = _origin(facts)
    decoder, encoder = model["decoder"], model["encoder"]
    language = decoder["name"] or decoder["preset"] or decoder["config"].get("model_type")
    vision = encoder["name"] or encoder["weights"] or encoder["kind"]
    start = f"trained from `{model['init_from']}`, " if model["init_from"] else ""
    return (
        f"# {facts.name}\n\nA chat model for conversations with several images, {start}with the decoder `{language}`, "
        f"the encoder `{vision}` and a projector of kind `{model['projector']['kind']}`, {facts.image_tokens} tokens "
        f"per image. {facts.parameters:,} parameters, stored in {facts.precision}."
    )


_LEFT = 'processor.tokenizer.padding_side = "left"  # for prompts of different lengths in one batch'


def _use(facts: CardFacts) -> str:
    allowed = tuple(each["name"] for each in facts.extensions.values() if ":" in each["name"])
    consent = f", allow_extensions={allowed!r}" if allowed else ""
    with_dsvl = (
        "import trainer  # of dsvl\n\n"
        f'loaded = trainer.load("path/of/this/folder"{consent})  # model, chat tokenizer, image geometry'
    )
    if facts.refusals:
        why = "; ".join(facts.refusals)
        text = (
            f"Open it with dsvl. It is not a LLaVA model: {why}.\n\n```python\n{with_dsvl}\n```\n\n"
            "After `import trainer`, the Auto classes of transformers open it too:\n\n```python\nimport trainer\n"
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            f'model = AutoModelForImageTextToText.from_pretrained("path/of/this/folder"{consent})\n'
            'processor = AutoProcessor.from_pretrained("path/of/this/folder")\n'
            f"{_LEFT}\n```"
        )
    else:
        standard = STANDARD_MODELS[facts.form]
        names, processor = _processor_code(is_tiled(facts.build.image))
        text = (
            f"It is a standard {standard.title} folder:\n\n```python\nfrom transformers import {names}, "
            f"{standard.class_name}\n\n"
            f'model = {standard.class_name}.from_pretrained("path/of/this/folder")\n'
            f"{processor}\n"
            f"{_LEFT}\n```\n\n"
            f"dsvl opens it too:\n\n```python\n{with_dsvl}\n```"
        )
    notes = "\n".join(f"- {difference}" for difference in facts.differences)
    text += "".join(f"\n\nIts {part} needs {_code(each)}." for part, each in facts.extensions.items())
    return f"## Use\n\n{text}\n\nImages with `AutoProcessor`:\n\n{notes}"


def _processor_code(tiled: bool) -> tuple[str, str]:
    """What is imported, and the lines that make the processor whose pixels are those of training.

    InternVL's processor, which folders with tiles have, has a part for videos, which has no backend of Pillow.
    """
    if not tiled:
        return "AutoProcessor", 'processor = AutoProcessor.from_pretrained("path/of/this/folder", backend="pil")'
    pixels = 'AutoImageProcessor.from_pretrained("path/of/this/folder", backend="pil")'
    code = 'processor = AutoProcessor.from_pretrained("path/of/this/folder")\nprocessor.image_processor = '
    return "AutoImageProcessor, AutoProcessor", code + pixels


def _code(extension: Mapping[str, Any]) -> str:
    if extension["distribution"]:
        return f"`{extension['name']}` of {extension['distribution']} {extension['version']}"
    return f"`{extension['name']}`, whose source has the digest `{extension['sha256'][:12]}`"


def data_section(facts: CardFacts) -> str:
    lines = [
        "| dataset | adapter | samples | images | tokens | trained tokens | samples per epoch |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, dataset in facts.build.datasets.items():
        counts = (dataset.samples, dataset.images, dataset.tokens, dataset.trained_tokens, dataset.draws)
        cells = [name, dataset.adapter, *(f"{count:,}" for count in counts)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return (
        f"## Data\n\nBuild manifest (sha256): `{facts.build.hash}`\n\nTemplate `{facts.build.template}`, "
        f"tokenizer `{facts.build.tokenizer.fingerprint}`.\n\n" + "\n".join(lines)
    )


def training_section(facts: CardFacts) -> str:
    training = dict(facts.training)
    if facts.earlier:  # its parts are those of the first stage, without their names
        training["model"] = {"attention": training["model"]["attention"]}
    text = yaml.safe_dump(training, sort_keys=False, allow_unicode=True)
    return f"## Training\n\n{_earlier(facts)}{facts.step:,} optimizer steps with this config:\n\n```yaml\n{text}```"


def _earlier(facts: CardFacts) -> str:
    """A line for each stage before this one."""
    lines = [
        f"{number}. {stage['step']:,} optimizer steps on {', '.join(stage['build']['datasets'])}, build manifest "
        f"`{stage['build']['hash']}`\n"
        for number, stage in enumerate(facts.earlier, 1)
    ]
    return f"Earlier stages, whose configs are in dsvl.json:\n\n{''.join(lines)}\nThen " if lines else ""


def _origin(facts: CardFacts) -> Mapping[str, Any]:
    """The model section of the first stage, which names the parts."""
    first = facts.earlier[0]["training"] if facts.earlier else facts.training
    model: Mapping[str, Any] = first["model"]
    return model


def weights_sha256(files: Mapping[str, FileFacts]) -> dict[str, str]:
    """File -> sha256 of those files that have one."""
    return {name: file.sha256 for name, file in files.items() if file.sha256 is not None}


def files_section(facts: CardFacts) -> str:
    """The digests of the weights, as `sha256sum --check` reads them."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in facts.weights_sha256.items())
    return f"## Weights\n\nSHA-256 of the files of weights:\n\n```text\n{lines}```"


def licence_section(facts: CardFacts) -> str:
    model = _origin(facts)
    datasets = [*(name for stage in facts.earlier for name in stage["build"]["datasets"]), *facts.build.datasets]
    parts = [
        *([f"model: {model['init_from']}"] if model["init_from"] else []),
        *(f"{part}: {model[part]['name']}" for part in ("decoder", "encoder") if model[part]["name"]),
        *(f"dataset: {name}" for name in dict.fromkeys(datasets)),
    ]
    rows = "\n".join(f"- {part}: (its licence)" for part in parts)
    return (
        "## Licence\n\nNot chosen yet. Choose one that all of these allow, and name it in this file's header.\n\n"
        f"{rows}\n\n## Intended use and limits\n\n"
        "Not written yet: describe what the model is for, how it was evaluated, and where it fails."
    )
