"""The README.md of an exported model: what it is, how it is used, and from which data and settings it came.

It is a draft for people to go on with; what only they can know (licences, intended use) is marked as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from shards.format.manifest import BuildFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What the card tells. `refusals`: why it is no LLaVA. `training`: the config, no local paths. `earlier`: stages
    before this one, see trainer.checkpoint.init_from.
    """

    name: str
    refusals: Sequence[str]
    differences: Sequence[str]
    precision: str
    parameters: int
    image_tokens: int
    build: BuildFacts
    training: Mapping[str, Any]
    step: int
    earlier: Sequence[Mapping[str, Any]] = ()


def model_card(facts: CardFacts) -> str:
    """The text, in Markdown with the header that model hubs read."""
    parts = [_header(facts), _title(facts), _use(facts), _data(facts), _training(facts), _licence(facts)]
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
    sees = encoder["name"] or encoder["weights"] or encoder["kind"]
    return (
        f"# {facts.name}\n\nA chat model for conversations with many images: the decoder `{language}` reads what the "
        f"encoder `{sees}` sees through the projector `{model['projector']['kind']}`, {facts.image_tokens} tokens an "
        f"image. {facts.parameters:,} parameters, stored in {facts.precision}."
    )


def _use(facts: CardFacts) -> str:
    ours = (
        "import trainer  # of dsvl\n\n"
        'loaded = trainer.load("path/of/this/folder")  # model, chat tokenizer, geometry of pictures'
    )
    if facts.refusals:
        why = "; ".join(facts.refusals)
        text = f"It opens with dsvl, and not as LLaVA: {why}.\n\n```python\n{ours}\n```"
    else:
        text = (
            "It is a standard LLaVA folder:\n\n```python\nfrom transformers import AutoProcessor, "
            "LlavaForConditionalGeneration\n\n"
            'model = LlavaForConditionalGeneration.from_pretrained("path/of/this/folder")\n'
            'processor = AutoProcessor.from_pretrained("path/of/this/folder", backend="pil")\n'
            'processor.tokenizer.padding_side = "left"  # for prompts of unlike length in one batch\n```\n\n'
            f"and opens with dsvl as well:\n\n```python\n{ours}\n```"
        )
    notes = "\n".join(f"- {difference}" for difference in facts.differences)
    return f"## Use\n\n{text}\n\nPictures through `AutoProcessor`:\n\n{notes}"


def _data(facts: CardFacts) -> str:
    lines = [
        "| dataset | adapter | samples | images | tokens | trained tokens | samples an epoch |",
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


def _training(facts: CardFacts) -> str:
    training = dict(facts.training)
    if facts.earlier:  # its parts are those of the first stage, in sizes alone
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
    """The parts of the model as the first stage named them."""
    first = facts.earlier[0]["training"] if facts.earlier else facts.training
    model: Mapping[str, Any] = first["model"]
    return model


def _licence(facts: CardFacts) -> str:
    model = _origin(facts)
    datasets = [*(name for stage in facts.earlier for name in stage["build"]["datasets"]), *facts.build.datasets]
    parts = [
        *(f"{part}: {model[part]['name']}" for part in ("decoder", "encoder") if model[part]["name"]),
        *(f"dataset: {name}" for name in dict.fromkeys(datasets)),
    ]
    rows = "\n".join(f"- {part}: (its licence)" for part in parts)
    return (
        "## Licence\n\nNot chosen yet. Choose one that all of these allow, and name it in this file's header.\n\n"
        f"{rows}\n\n## Intended use and limits\n\n"
        "Not written yet: say what the model is for, what it was tried on, and where it fails."
    )
