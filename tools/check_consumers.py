"""Run programs of others against `dsvl-train serve`: `python -m tools.check_consumers`.

Makes .venv-consumers with llm (chats in a terminal) and inspect-ai (an evaluation harness), starts a server of a tiny
random model with a key, and asks it through both: text, an image, a stream, an evaluation of several samples at once.
Their output is printed; a failure ends it with 1. `--venv FOLDER` uses an environment that has both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from tests.support.chat_requests import image_bytes
from tests.support.serve_processes import serve_process, tiny_export

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-consumers"
REQUIREMENTS = ("inspect-ai==0.3.285", "llm==0.36", "openai==3.57.0")
KEY = "a-key"
TASK = """
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import includes

content = [ContentImage(image={image!r}), ContentText(text="What is this?")]
samples = [Sample(input=f"What is {{number}}?", target="a") for number in range(6)]
samples.append(Sample(input=[ChatMessageUser(content=content)], target="a"))
task = Task(dataset=samples, scorer=includes())
options = {{"temperature": 0.5, "seed": 1, "max_tokens": 8, "max_connections": 4}}
(log,) = eval(task, model="openai-api/dsvl/tiny", display="none", log_dir="logs", **options)
usage = log.stats.model_usage["openai-api/dsvl/tiny"]
print(f"inspect-ai: {{log.status}}, {{len(log.samples)}} samples, {{usage.output_tokens}} tokens", log.error or "")
assert log.status == "success" and all(sample.error is None for sample in log.samples)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=VENV, help="made if it is not there")
    venv = parser.parse_args().venv
    if not (venv / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([venv / "bin/python", "-m", "pip", "install", "-qq", *REQUIREMENTS], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "photo.png").write_bytes(image_bytes())
        with serve_process(tiny_export(folder), environment={"DSVL_API_KEY": KEY}) as served:
            served.wait_until_ready()
            done = [_llm(venv, folder, served.url), _inspect(venv, folder, served.url)]
            sys.stderr.writelines(served.stderr)
    return int(not all(done))


def _llm(venv: Path, folder: Path, url: str) -> bool:
    settings = f"- model_id: tiny\n  model_name: tiny\n  api_base: {url}v1\n  vision: true\n  api_key_name: dsvl\n"
    (folder / "extra-openai-models.yaml").write_text(settings, encoding="utf-8")
    (folder / "keys.json").write_text(json.dumps({"dsvl": KEY}), encoding="utf-8")
    environment = {"LLM_USER_PATH": str(folder)}
    llm = [str(venv / "bin/llm"), "-m", "tiny", "-o", "max_tokens", "8", "-o", "seed", "1"]
    commands = (
        [*llm, "What is this?"],
        [*llm, "--no-stream", "-s", "Be brief.", "What is this?"],
        [*llm, "-a", "photo.png", "What is this?"],
        [*llm, "--continue", "Why?"],
    )
    return all(_succeeds("llm", command, folder, environment) for command in commands)


def _inspect(venv: Path, folder: Path, url: str) -> bool:
    code = TASK.format(image=str(folder / "photo.png"))
    environment = {"DSVL_API_KEY": KEY, "DSVL_BASE_URL": f"{url}v1"}
    return _succeeds("inspect-ai", [str(venv / "bin/python"), "-c", code], folder, environment)


def _succeeds(name: str, command: list[str], folder: Path, environment: dict[str, str]) -> bool:
    surroundings = os.environ | environment
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)
    print(f"{name}: {'ok' if not done.returncode else 'FAILED'}: {done.stdout.strip()[-300:]}", flush=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
