"""DeepSpeed starts without compiling anything, and keeps its compiler for what asks for it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from packaging.version import Version

PROGRAM = """
import sys
from trainer.compat.deepspeed import quiet_deepspeed
deepspeed = quiet_deepspeed()
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer
import deepspeed.comm, torch
deepspeed.comm.get_rank = lambda: 0
parameter = torch.nn.Parameter(torch.zeros(1))
print(is_zero_supported_optimizer(torch.optim.AdamW([parameter])), is_zero_supported_optimizer(object()))
print("torch._inductor.compile_fx" in sys.modules)
compiler.compile()(lambda: None)
print("torch._inductor.compile_fx" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(Version(metadata.version("deepspeed")) < Version("0.19.8"), reason="loads it as it is imported")
def test_deepspeed_starts_without_torchs_compiler_and_can_still_load_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True False", "False", "True"]
    assert done.stderr == ""
