"""The README.md of an exported adapter: the model it is for, how to load it, and how it was trained."""

from __future__ import annotations

import yaml

from trainer.export.model_card import CardFacts, data_section, files_section, licence_section, training_section
from trainer.model_io.llava_folder import model_title


def adapter_card(facts: CardFacts, base: str) -> str:
    """The card in Markdown, with the header that model hubs read. base: the LLaVA folder or hub id that it is for."""
    parts = [
        _header(base),
        _use(facts, base),
        data_section(facts),
        training_section(facts),
        files_section(facts),
        licence_section(facts),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _header(base: str) -> str:
    head = {
        "base_model": model_title(base),
        "library_name": "peft",
        "license": "other",
        "pipeline_tag": "image-text-to-text",
        "tags": ["dsvl", "vision-language", "lora"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _use(facts: CardFacts, base: str) -> str:
    title = model_title(base)
    return (
        f"# {facts.name}\n\nAn adapter for the LLaVA model `{title}`: {facts.parameters:,} parameters, stored in "
        f"{facts.precision}. It holds all that was trained, also the modules that were trained in full.\n\n## Use\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoProcessor, AutoTokenizer, "
        "LlavaForConditionalGeneration\n\n"
        f'model = LlavaForConditionalGeneration.from_pretrained("path/of/{title}")\n'
        'model = PeftModel.from_pretrained(model, "path/of/this/folder")\n'
        f'processor = AutoProcessor.from_pretrained("path/of/{title}", backend="pil")\n'
        'processor.tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")\n'
        "processor.chat_template = processor.tokenizer.chat_template  # the template of the training\n```"
    )
