"""Run programs of others against `dsvl-train serve`: `python -m tools.check_consumers`.

Makes .venv-consumers with llm (chats in a terminal), inspect-ai and lm-evaluation-harness (evaluation harnesses), and
Gradio, which has a chat page for servers of OpenAI's API. Starts a server of a tiny random model with a key, and asks
it through each: text, images, a stream, several samples at once. Their output is printed; a failure ends it with 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from tests.support.chat_requests import image_bytes
from tests.support.serve_processes import serve_process, tiny_export
from tools.gradio_page import answers_about

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-consumers"
REQUIREMENTS = ("gradio==6.31.0", "inspect-ai==0.3.285", "llm==0.36", "lm_eval[api]==0.4.13", "openai==3.57.0")
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

LM_EVAL_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{rows}"}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 8}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
LM_EVAL_IMAGES = """
from PIL import Image

def images(doc):
    return [Image.open(doc["image"])]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="an environment that has them; default: .venv-consumers is made")
    venv = parser.parse_args().venv or make_environment()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "photo.png").write_bytes(image_bytes())
        with serve_process(tiny_export(folder), "--max-new-tokens", "8", environment={"DSVL_API_KEY": KEY}) as served:
            served.wait_until_ready()
            done = [run(venv, folder, served.url) for run in (_llm, _inspect, _lm_eval, _gradio)]
            sys.stderr.writelines(served.stderr)
    return int(not all(done))


def make_environment() -> Path:
    """The environment, which is made or finished first."""
    if not (VENV / "bin/python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([VENV / "bin/python", "-m", "pip", "install", "-qq", *REQUIREMENTS], check=True)
    return VENV


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


def _lm_eval(venv: Path, folder: Path, url: str) -> bool:
    """Three texts and three images. In one run, lm-evaluation-harness 0.4.13 would send no image."""
    image = str(folder / "photo.png")
    rows = [{"question": f"What is {number}?", "answer": "a", "image": image} for number in range(3)]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "tasks").mkdir()
    (folder / "tasks/images.py").write_text(LM_EVAL_IMAGES, encoding="utf-8")
    seen = [_images_read(url)]
    for name, extra in (("texts", ""), ("photos", "doc_to_image: !function images.images\n")):
        task = LM_EVAL_TASK.format(name=name, rows=folder / "rows.json") + extra
        (folder / f"tasks/{name}.yaml").write_text(task, encoding="utf-8")
        model_args = f"model=tiny,base_url={url}v1/chat/completions,num_concurrent=3"
        command = [str(venv / "bin/lm_eval"), "--model", "local-chat-completions", "--model_args", model_args]
        command += ["--apply_chat_template", "--include_path", "tasks", "--tasks", name]
        environment = {"OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
        if not _succeeds("lm-evaluation-harness", command, folder, environment):
            return False
        seen.append(_images_read(url))
    print(f"lm-evaluation-harness: images that the model read, before and after each task: {seen}", flush=True)
    return seen == [seen[0], seen[0], seen[0] + 3]


def _gradio(venv: Path, folder: Path, url: str) -> bool:
    before = _images_read(url)
    answers = answers_about(folder / "photo.png", venv / "bin/python", f"{url}v1", KEY)
    num_images = _images_read(url) - before
    is_right = len(answers) == 2 and all(answers) and num_images == 2
    print(f"Gradio: {'ok' if is_right else 'FAILED'}: {answers}, images that the model read: {num_images}", flush=True)
    return is_right


def _images_read(url: str) -> int:
    """Since the server started, with those of its cache."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}health") as answer:
        stats = json.load(answer)["stats"]
    return int(stats["image_hits"] + stats["image_misses"])


def _succeeds(name: str, command: list[str], folder: Path, environment: dict[str, str]) -> bool:
    surroundings = os.environ | environment
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)
    print(f"{name}: {'ok' if not done.returncode else 'FAILED'}: {done.stdout.strip()[-300:]}", flush=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
