"""Nothing is compiled, as in DeepSpeed-VisualChat: each item is opened, rendered and tokenized on the fly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

import harness
from preprocessing import Preprocess

SYSTEM = "You are a powerful vision-language assistant.\n"


class Conversations(torch.utils.data.Dataset[harness.Sample]):
    """LLaVA's records. Prompt pieces are not trained on, answers are; one token stands for the image."""

    def __init__(self, task: harness.Task, preprocess: Preprocess) -> None:
        self._records = json.loads((task.folder / "llava/detail_23k.json").read_text(encoding="utf-8"))
        self._photos = task.folder / "coco/train2017"
        self._tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(f"{task.data}/original/tokenizer")
        self._preprocess = preprocess if task.mode == "full" else None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> harness.Sample:
        record = self._records[index]
        question, answer = (turn["value"] for turn in record["conversations"])
        text = question.replace("<image>", "### Image 1:\n<image>")
        prompt = self._ids(f"{SYSTEM}{text}\n### Question:\n")
        trained = self._ids(f"### Answer:\n{answer}{self._tokenizer.eos_token}")
        tokens = np.array([prompt + trained, [harness.IGNORE] * len(prompt) + trained], dtype=np.int32)
        path = self._photos / record["image"]
        if self._preprocess is None:
            return tokens, [path.read_bytes()]
        with Image.open(path) as image:
            return tokens, [self._preprocess(image.convert("RGB"))]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def batches(task: harness.Task, preprocess: Preprocess) -> Iterable[Any]:
    return torch.utils.data.DataLoader(
        Conversations(task, preprocess),
        batch_size=task.batch_size,
        shuffle=True,
        num_workers=task.workers,
        collate_fn=harness.collate,
    )


if __name__ == "__main__":
    harness.main(batches)
