"""What the server of train_runs imports once for all ranks that it forks."""

import gc
import importlib

from trainer.compat.torchvision import declare_operators

declare_operators()
for name in (
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed asks at each start whether it is in use: 3 s, for inductor
    "numpy.ma",
    "packaging.requirements",
    "peft",
    "setuptools",
    "simplejpeg",
    "trainer.cli",
    "trainer.training.run",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
gc.freeze()  # a collection in a fork would copy every page of what was imported
