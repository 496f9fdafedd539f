"""What the server of train_runs imports once for all ranks that it forks."""

import gc
import importlib

from trainer.compat.deepspeed import quiet_deepspeed

quiet_deepspeed()
for name in (
    "numpy.ma",
    "packaging.requirements",
    "peft",
    "setuptools",
    "rich.console",
    "simplejpeg",
    "tests.support.train_runs",
    "trainer.cli",
    "trainer.training.run",
    "transformers.models.llama.modeling_llama",
):
    importlib.import_module(name)
gc.freeze()  # a collection in a fork would copy every page of what was imported
