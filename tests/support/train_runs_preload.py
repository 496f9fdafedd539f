"""What the server of train_runs imports once for all ranks that it forks."""

import gc
import importlib

from trainer.compat.torchvision import declare_operators

declare_operators()
for name in ("deepspeed", "peft", "transformers.models.llama.modeling_llama", "trainer.training.run"):
    importlib.import_module(name)
gc.freeze()  # a collection in a fork would copy every page of what was imported
