"""Opens exported folders with transformers 4, in an environment of its own: transformers4_reader.py FOLDER.

FOLDER has a folder for each export, next to it the ids and pixels to read in NAME.inputs.safetensors, and two images.
Writes NAME.outputs.safetensors: the logits of these inputs, and the ids and pixels of the exported processor. Prints
the names of weights that were missing or left over, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers as library
from PIL import Image
from safetensors.torch import load_file, save_file

transformers: Any = library  # of another release than the one whose types are checked


def main(folder: Path) -> None:
    transformers.logging.set_verbosity_error()
    images = [Image.open(folder / f"{number}.png") for number in range(2)]
    problems = {}
    for path in sorted(folder.glob("*.inputs.safetensors")):
        name = path.name.removesuffix(".inputs.safetensors")
        problems[name] = read(folder / name, load_file(path), images, folder / f"{name}.outputs.safetensors")
    print(json.dumps(problems))


def read(export: Path, inputs: dict[str, torch.Tensor], images: list[Any], out: Path) -> list[str]:
    """Writes the outputs; returns names that were missing or left over."""
    architecture = json.loads((export / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model, loading = getattr(transformers, architecture).from_pretrained(export, output_loading_info=True)
    processor = transformers.AutoProcessor.from_pretrained(export, use_fast=False)
    rounds = json.loads((export.parent / "question.json").read_text(encoding="utf-8"))
    text = processor.apply_chat_template(rounds, add_generation_prompt=True)
    processed = processor(text=text, images=images, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["ids"], pixel_values=inputs["pixels"]).logits
    save_file({"logits": logits, "ids": processed["input_ids"], "pixels": processed["pixel_values"]}, str(out))
    return sorted(str(name) for names in loading.values() for name in names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
