"""Compare exports in the last release of transformers 4: `python -m tools.check_transformers4`.

Makes .venv-transformers4 with that release and the installed torch, exports small models of many decoders and towers,
and compares their logits, ids and pixels there. If all are equal, tests/golden/transformers4.json is renewed: names and
keys that the other tests compare with.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-transformers4"
REQUIREMENTS = ("transformers==4.57.6", "pillow", "jinja2")
TEST = "tests/trainer/model_io/test_transformers4.py"


def main() -> int:
    python = VENV / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    torch = f"torch=={metadata.version('torch').partition('+')[0]}"
    subprocess.run([python, "-m", "pip", "install", "-qq", torch, *REQUIREMENTS], check=True)
    options = {"DSVL_TRANSFORMERS4_VENV": str(VENV), "DSVL_RENEW_TRANSFORMERS4": "1"}
    command = [sys.executable, "-m", "pytest", TEST, "-k", "test_transformers_4_gives", "-m", "slow"]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **options}).returncode


if __name__ == "__main__":
    sys.exit(main())
