"""A tokenizer.json is tried in a process of its own before this one uses it.

The `tokenizers` library is Rust: a damaged or forged file can end the process that loads it, or ask for any amount of
memory. Rule: only a file whose trial ended well is loaded here. A trial costs a twentieth of a second and the time that
the library takes to load the file; each file is tried once in a process.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

MOST_BYTES = 4 << 30
"""Of address space for a trial; the largest published tokenizers take a tenth of it."""

LIMIT_S = 120.0
"""For a trial: the largest published tokenizers load in two seconds."""

_TRIAL = """
import resource, sys
limit = int(sys.argv[1])
if sys.platform == "linux":
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import tokenizers
try:
    tokenizer = tokenizers.Tokenizer.from_str(sys.stdin.buffer.read().decode())
except Exception as error:
    sys.exit(str(error))
for texts in (["Hello, world!"], ["", " ", "a", "\\u00e9\\u4e2d\\U0001f600", "x" * 100, " a\\n\\n  b"]):
    try:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    except Exception as error:
        sys.exit(f"cannot encode {texts!r:.60}: {error}")
    tokenizer.decode(encodings[-1].ids, skip_special_tokens=False)
"""

_sound: set[str] = set()
"""Digests of the texts whose trial ended well"""


def trial_problem(definition: str) -> str | None:
    """Why the text of a tokenizer.json cannot be used, in one line; None if it can."""
    digest = hashlib.sha256(definition.encode("utf-8", "surrogatepass")).hexdigest()
    if digest in _sound:
        return None
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, str(MOST_BYTES)],
            input=definition.encode("utf-8", "surrogatepass"),
            capture_output=True,
            env=environment,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it was not loaded after {LIMIT_S:.0f} s"
    if done.returncode == 0:
        _sound.add(digest)
        return None
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    if done.returncode == 1 and len(lines) == 1:
        return lines[0][:300]
    reason = next((line for line in lines if "memory allocation" in line), None)
    if reason is None:
        panics = [number for number, line in enumerate(lines) if "panicked at" in line]
        reason = lines[panics[0] + 1] if panics and panics[0] + 1 < len(lines) else "no message"
    return f"the tokenizers library fails on it: {reason[:300]}"
