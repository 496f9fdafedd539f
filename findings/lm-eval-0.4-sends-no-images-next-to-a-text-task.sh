#!/usr/bin/env bash
# lm-evaluation-harness 0.4.13 sends no images for a task that has them, if a task of texts comes before it in the run.
#
# One expects: `--model local-chat-completions` sends the images of a task with doc_to_image as image_url parts, as it does
# when the task is run alone. Seen: `--tasks a_texts,b_photos` sends the questions of both and no image, without a warning,
# and the scores are those of a model that sees nothing. All requests of a run come in one list, and
# TemplateAPI.generate_until looks at the first one alone to decide whether they have images; a zip drops the rest.
#
# Seen with lm_eval 0.4.13, datasets 5.2.0, Pillow 13.0.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'lm_eval[api]==0.4.13' 'datasets==5.2.0' 'pillow==13.0.0'
cd "$folder"
mkdir tasks
cat > tasks/images.py <<'END'
from PIL import Image

def images(doc):
    return [Image.new("RGB", (8, 8))]
END
printf '{"question": "What is this?", "answer": "a"}\n{"question": "Why?", "answer": "b"}\n' > rows.jsonl
for name in a_texts b_photos; do
    cat > "tasks/$name.yaml" <<END
task: $name
dataset_path: json
dataset_kwargs: {data_files: {test: "$folder/rows.jsonl"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n\n"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
END
done
echo 'doc_to_image: !function images.images' >> tasks/b_photos.yaml
cat > check.py <<'END'
import http.server
import json
import os
import subprocess
import sys
import threading

sent = []


class Server(http.server.BaseHTTPRequestHandler):
    """Answers every chat completion, and notes how many images it shows."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        sent.append(body.count('"image_url"') // 2)  # the type of a part, and its key
        answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "a"}}]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
counts = []
for tasks in ("b_photos", "a_texts,b_photos"):
    del sent[:]
    command = [os.path.join(os.path.dirname(sys.executable), "lm_eval"), "--model", "local-chat-completions"]
    command += ["--model_args", f"model=m,base_url={url}", "--apply_chat_template"]
    command += ["--include_path", "tasks", "--tasks", tasks]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "hub", "NO_PROXY": "127.0.0.1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    counts.append(sum(sent))
print(f"lm_eval 0.4.13: images sent: alone {counts[0]}; after a task of texts {counts[1]}")
assert counts == [2, 0], counts
END
venv/bin/python check.py
