#!/usr/bin/env bash
# pytorch-lightning 2.6.6: a run that resumes skips a batch if its stateful data loader has no length.
#
# Lightning saves the state_dict of a data loader that has state_dict and load_state_dict, and loads it when a run
# resumes. One expects the next batch after the last that was trained on. Seen: if the loader has no __len__, Lightning
# fetches one batch ahead, to know which one is the last; the state that it saves is that of the loader after this
# batch, which was not trained on. So the resumed run skips it, at every resume, without a warning. With a __len__ it
# fetches nothing ahead, and the run continues with the next batch.
#
# Seen with pytorch-lightning 2.6.6, torch 2.13.0, pip 23.2.1, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install -qq --disable-pip-version-check pytorch-lightning==2.6.6 torch==2.13.0 'numpy<3' setuptools

cd "$folder"
"$python" -W ignore - <<'PYTHON'
import logging
import sys

import pytorch_lightning
import torch

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Counter:
    """Gives 1, 2, 3, ... up to 100; its state is the last number that it gave."""

    def __init__(self):
        self.last = 0

    def __iter__(self):
        while self.last < 100:
            self.last += 1
            yield torch.tensor([float(self.last)])

    def state_dict(self):
        return {"last": self.last}

    def load_state_dict(self, state):
        self.last = state["last"]


class CounterWithLength(Counter):
    def __len__(self):
        return 100


class Model(pytorch_lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append(int(batch))
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(loader, steps, checkpoint=None):
    model = Model()
    trainer = pytorch_lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, ckpt_path=checkpoint, weights_only=False)
    trainer.save_checkpoint("last.ckpt")
    return model.seen


seen = {}
for kind in (Counter, CounterWithLength):
    seen[kind] = train(kind(), 3), train(kind(), 6, "last.ckpt")
    print(f"{kind.__name__}: batches {seen[kind][0]}, after resuming {seen[kind][1]}")
if seen != {Counter: ([1, 2, 3], [5, 6, 7]), CounterWithLength: ([1, 2, 3], [4, 5, 6])}:
    sys.exit("changed: expected batch 4 to be skipped without a length, and not to be with one")
PYTHON
