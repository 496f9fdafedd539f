"""Send thousands of good and bad requests to `dsvl-train serve`, and see what is answered and what memory it takes.

    python -m tools.bench.serve_soak [--requests 10000] [--clients 8] [--cache-gb 0.01]

The server is a process with a tiny random model, a key, and bodies of up to 1 MiB. The requests are of 16 kinds
(tools/bench/serving/mixed_requests.py): answers, streams and images, and bodies that are not JSON, bad images, private
URLs, oversized bodies, wrong keys, what is not HTTP, clients that leave. An answer with another status than the one of
its kind counts as unexpected; 429 is right for every kind. Prints Markdown for docs/benchmarks.md, and ends with 1 if
an answer was unexpected or the server did not stop as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import trainer.compat  # noqa: F401 - before transformers, which looks for torchvision
from tests.support.serve_processes import ServeProcess, serve_process, tiny_export
from tools.bench.data import machine
from tools.bench.serving.mixed_requests import KEY, Exchange, exchange

OPTIONS = ("--max-body-mib", "1", "--image-urls", "--stop-within", "10", "--temperature", "0")
ANSWER_S = 120.0


@dataclass(slots=True, kw_only=True)
class Soak:
    """What came of all requests. statuses: kind -> status -> number; 0 is none, from a client that left.

    memory: (requests until then, resident bytes of the server, its open files).
    """

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    memory: list[tuple[int, int, int]] = field(default_factory=list)
    exit_code: int = -1
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8, help="requests at the same time")
    parser.add_argument("--cache-gb", type=float, default=0.01, help="of the server; small, so that it fills early")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        soak = run(tiny_export(Path(scratch)), options.requests, options.clients, options.cache_gb)
    print(f"{machine()}\n\n{options.requests:,} requests of {options.clients} clients in {soak.seconds:.0f} s\n")
    print("| requests | resident memory | open files |\n|---|---|---|")
    for number, size, files in soak.memory:
        print(f"| {number:,} | {size / (1 << 20):.0f} MiB | {files} |")
    print("\n| kind | statuses |\n|---|---|")
    for kind, counts in sorted(soak.statuses.items()):
        numbers = ", ".join(f"{status or 'none'}: {number:,}" for status, number in sorted(counts.items()))
        print(f"| {kind} | {numbers} |")
    print(f"\nunexpected answers: {len(soak.unexpected)}; exit code after SIGTERM: {soak.exit_code}")
    for line in soak.unexpected[:20]:
        print(line, file=sys.stderr)
    return int(bool(soak.unexpected) or soak.exit_code != 0)


def run(model: Path, requests: int, clients: int, cache_gb: float, *, marks: int = 10) -> Soak:
    """Start a server of the model, send the requests, and stop it. marks: how often memory is measured."""
    soak = Soak()
    with serve_process(model, *OPTIONS, "--cache-gb", str(cache_gb), environment={"DSVL_API_KEY": KEY}) as served:
        served.wait_until_ready()
        started = time.monotonic()
        soak.memory.append((0, *_memory(served)))
        for mark in range(marks):
            numbers = range(requests * mark // marks, requests * (mark + 1) // marks)
            asyncio.run(_all(served.url, numbers, clients, soak))
            soak.memory.append((numbers.stop, *_memory(served)))
            print(f"{numbers.stop:,} {soak.memory[-1][1] >> 20} MiB", file=sys.stderr, flush=True)
        soak.seconds = time.monotonic() - started
        soak.exit_code = served.end(signal.SIGTERM)
        soak.unexpected += [line for line in served.stderr if line.startswith(("Traceback", "  File"))]
    return soak


async def _all(url: str, numbers: range, clients: int, soak: Soak) -> None:
    waiting = iter(numbers)

    async def client() -> None:
        for number in waiting:
            asked = exchange(number)
            status = await _status(url, asked)
            soak.statuses.setdefault(asked.kind, Counter())[status] += 1
            if status not in (*asked.expected, 429):
                soak.unexpected.append(f"request {number} ({asked.kind}): got {status}; expected {asked.expected}")

    await asyncio.gather(*(client() for _ in range(clients)))


async def _status(url: str, asked: Exchange) -> int:
    """0 for a client that leaves; -1 for a connection that ends without an answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(ANSWER_S):
            writer.write(asked.raw or _request(asked, parts.netloc))
            with suppress(ConnectionError):
                await writer.drain()
            if asked.leave:
                if asked.leave == "amid the answer":
                    await reader.readuntil(b"data: ")
                return 0
            head = await reader.readuntil(b"\r\n")
            while await reader.read(1 << 16):
                pass
            return int(head.split()[1])
    except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
        return -1
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def _request(asked: Exchange, host: str) -> bytes:
    headers = {"Host": host, "Authorization": f"Bearer {KEY}", "Connection": "close"}
    body = b""
    if asked.body is not None:
        body = asked.body[: len(asked.body) // 2] if asked.leave == "amid the body" else asked.body
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(asked.body))}
    headers |= dict(asked.headers)
    lines = [f"{'GET' if asked.body is None else 'POST'} {asked.path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _memory(served: ServeProcess) -> tuple[int, int]:
    """Resident bytes and open files."""
    process = Path("/proc") / str(served.process.pid)
    pages = int((process / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir()))


if __name__ == "__main__":
    sys.exit(main())
