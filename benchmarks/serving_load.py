"""The HTTP endpoint under load: latency, requests/s and rows/s from one client to 32, and the server's memory.

    python -m benchmarks.serving_load --model FOLDER_OR_HUB_ID [--backend onnx] [--rows 1] [--seconds 10] [--minutes 30]
        [--json PATH]

The server is `modeling_flip.serving.serve`, a process on loopback; its clients share one other process and the machine's cores,
so that a server alone on its machine answers more. Each client asks again as soon as it is answered, with rows of values that
training has seen, drawn at random. `--minutes` goes on with eight clients and looks at the server's memory all the while. A
request that is not answered with 200 is a failure, and fails the command.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from modeling_flip import FlipProcessor
from modeling_flip.serving.explain import sampled_rows
from modeling_flip.training.manifest import environment

CLIENTS = (1, 2, 4, 8, 16, 32)
SOAK_CLIENTS = 8
NUM_ROWS = 4096
LOOKS = 60  # at the memory, in a soak


@contextmanager
def served(model: str, backend: str | None) -> Iterator[str]:
    """The address of a server of its own."""
    command = [sys.executable, "-m", "modeling_flip.serving.serve", "--model", model, "--port", "0"]
    process = subprocess.Popen(command + (["--backend", backend] if backend else []), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start; its error stands above")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()


def memory_mib(url: str) -> float:
    """The server's resident memory."""
    lines = httpx2.get(f"{url}/metrics").text.splitlines()
    (figure,) = (line.split()[1] for line in lines if line.startswith("process_resident_memory_bytes "))
    return float(figure) / 2**20


async def load(url: str, bodies: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Figures of some clients that ask for some time."""
    latencies: list[float] = []
    failures = 0
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(limits=limits, timeout=60) as client:
        end = time.perf_counter() + seconds

        async def ask(first: int) -> None:
            nonlocal failures
            for i in range(first, sys.maxsize, clients):
                started = time.perf_counter()
                if started >= end:
                    return
                headers = {"content-type": "application/json"}
                answer = await client.post(f"{url}/score", content=bodies[i % len(bodies)], headers=headers)
                latencies.append(time.perf_counter() - started)
                failures += answer.status_code != 200

        started = time.perf_counter()
        await asyncio.gather(*map(ask, range(clients)))
        spent = time.perf_counter() - started
    p50, p99 = np.percentile(latencies, (50, 99))
    return {
        "requests": len(latencies),
        "failures": failures,
        "p50_ms": 1000 * float(p50),
        "p99_ms": 1000 * float(p99),
        "requests_per_second": len(latencies) / spent,
    }


def soak(url: str, bodies: list[bytes], minutes: float) -> dict[str, Any]:
    """Eight clients for some minutes, and the server's memory meanwhile."""
    parts, memory = [], [memory_mib(url)]
    for _ in range(LOOKS):
        parts.append(asyncio.run(load(url, bodies, SOAK_CLIENTS, 60 * minutes / LOOKS)))
        memory.append(memory_mib(url))
    return {
        "minutes": minutes,
        "requests": sum(part["requests"] for part in parts),
        "failures": sum(part["failures"] for part in parts),
        "p99_ms": max(part["p99_ms"] for part in parts),
        "memory_mib": memory,
        # The first third is left out: allocators fill their pools then.
        "growth_mib": float(np.median(memory[-LOOKS // 6 :]) - np.median(memory[LOOKS // 3 : LOOKS // 2])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or a model on the Hub")
    parser.add_argument("--backend", help="that of the server")
    parser.add_argument("--rows", type=int, default=1, help="rows of a request")
    parser.add_argument("--seconds", type=float, default=10, help="of load for each number of clients")
    parser.add_argument("--minutes", type=float, help="of load afterwards, to see whether memory grows")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    rows = sampled_rows(FlipProcessor.from_pretrained(args.model), NUM_ROWS)
    groups = (rows[i : i + args.rows] for i in range(0, len(rows) - args.rows + 1, args.rows))
    bodies = [json.dumps({"rows": group}).encode() for group in groups]
    levels: dict[str, dict[str, float]] = {}
    with served(args.model, args.backend) as url:
        asyncio.run(load(url, bodies, 1, min(1, args.seconds)))  # a warm-up
        begin = memory_mib(url)
        print(f"{args.rows} rows a request\nclients      p50       p99  requests/s     rows/s")
        for clients in CLIENTS:
            level = asyncio.run(load(url, bodies, clients, args.seconds))
            levels[str(clients)] = level | {"rows_per_second": args.rows * level["requests_per_second"]}
            print(
                f"{clients:7}{level['p50_ms']:7.1f} ms{level['p99_ms']:7.1f} ms{level['requests_per_second']:12,.0f}"
                f"{args.rows * level['requests_per_second']:11,.0f}",
                flush=True,
            )
        figures = {
            **{"rows_per_request": args.rows, "seconds": args.seconds, "backend": args.backend or "torch"},
            "clients": levels,
            "memory_mib": {"begin": begin, "end": memory_mib(url)},
        }
        print("memory of the server, MiB: {begin:,.0f}, then {end:,.0f}".format(**figures["memory_mib"]))
        if args.minutes:
            figures["soak"] = soak(url, bodies, args.minutes)
            print(
                "after {minutes} minutes: {requests:,} requests, memory grown by {growth_mib:.1f} MiB".format(
                    **figures["soak"]
                )
            )
    failures = sum(level["failures"] for level in [*levels.values(), figures.get("soak", {"failures": 0})])
    if args.json:
        args.json.write_text(json.dumps(figures | environment(), indent=2) + "\n")
    if failures:
        raise SystemExit(f"{failures:,.0f} requests were not answered with 200")


if __name__ == "__main__":
    main()
