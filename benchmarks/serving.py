"""What the service takes: one slider, many at once, memory over thousands of requests, requests that are given up.

    python benchmarks/serving.py [--viscoin MODEL] [--requests 2000]

It starts a service of its own on a free port and prints a table; nothing is asserted about times.
"""

import argparse
import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "benchmark-of-the-service"


def start(model: str | None) -> tuple[subprocess.Popen[str], str]:
    """A service on a free port, and its address, when its models are loaded and it knows what is usual."""
    command = [sys.executable, str(ROOT / "main.py"), "serve", "--port", "0", "--read-only"]
    command += ["--viscoin", model] if model else []
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "VISCOIN_TOKEN": TOKEN}
    )
    begun, address = time.perf_counter(), ""
    lines = iter(process.stderr or ())
    while not address:
        line = next(lines, "")
        if not line:
            sys.exit("the service did not start")
        if found := re.search(r"http://[\w.:]+", line):
            address = found[0]
    print(f"listens after {time.perf_counter() - begun:.1f} s")
    with httpx.Client(base_url=address) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
    print(f"models loaded after {time.perf_counter() - begun:.1f} s")
    return process, address


def resident(process: subprocess.Popen[str]) -> float:
    """MB in memory."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def photo() -> bytes:
    """A JPEG of 640 x 480 pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480)).save(buffer, "JPEG")
    return buffer.getvalue()


async def timed(client: httpx.AsyncClient, kind: str, number: int) -> tuple[int, float]:
    """Status and milliseconds of one request."""
    begun = time.perf_counter()
    image = f"birds/test/{number % 100}"
    if kind == "amplify":
        factors = {str(number % 16): round(0.05 * (number % 40), 2)}
        answer = await client.post("/api/v1/amplify", json={"image": image, "factors": factors})
    elif kind == "predict":
        answer = await client.post("/api/v1/predict/files", files={"file": ("a.jpg", PHOTO)})
    else:
        answer = await client.post("/api/v1/explain", json={"image": image, "method": "gradcam"})
    return answer.status_code, 1000 * (time.perf_counter() - begun)


async def together(client: httpx.AsyncClient, kind: str, at_once: int, total: int) -> None:
    """Ask in groups, and print what came of it."""
    found, begun = [], time.perf_counter()
    for first in range(0, total, at_once):
        found += await asyncio.gather(*(timed(client, kind, n) for n in range(first, first + at_once)))
    seconds = time.perf_counter() - begun
    served = [ms for status, ms in found if status == 200]
    refused = sum(status == 503 for status, _ in found)
    median, p95 = (np.percentile(served, q) for q in (50, 95)) if served else (np.nan, np.nan)
    lost = len(found) - len(served) - refused
    print(
        f"{kind:8} {at_once:4} at once: median {median:6.0f} ms, p95 {p95:6.0f} ms, {len(served) / seconds:5.0f} a "
        f"second; {len(served)} served, {refused} refused by 503, {lost} lost"
    )


async def abandoned(client: httpx.AsyncClient, count: int = 60) -> None:
    """Requests whose client goes after 0.12 s, while the service is busy."""
    before = await numbers(client)

    async def give_up(number: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(timed(client, "amplify", number), 0.12)

    await asyncio.gather(*(give_up(n) for n in range(count)))
    await asyncio.sleep(3)
    after = await numbers(client)
    computed = after["viscoin_computed_total"] - before["viscoin_computed_total"]
    print(f"{count} given up after 0.12 s: {count - computed:.0f} never computed")


async def numbers(client: httpx.AsyncClient) -> dict[str, float]:
    """Numbers of the quick engine from /metrics."""
    text = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r'^(\w+)\{engine="quick"\} (\S+)$', text, re.M)}


async def main(arguments: argparse.Namespace) -> None:
    process, address = start(arguments.viscoin)
    try:
        limits = httpx.Limits(max_connections=250, max_keepalive_connections=250)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60, limits=limits) as client:
            await together(client, "amplify", 1, 20)  # warms up
            print(f"{resident(process):.0f} MB")
            for kind, at_once, total in (
                ("amplify", 1, 100), ("amplify", 4, 100), ("amplify", 20, 400), ("amplify", 80, 400),
                ("amplify", 200, 600), ("predict", 1, 50), ("predict", 20, 200), ("explain", 1, 30),
            ):  # fmt: skip
                await together(client, kind, at_once, total)
            await abandoned(client)
            kinds = ("amplify", "predict", "amplify", "explain")
            sizes = []
            for first in range(0, arguments.requests, 8):
                await asyncio.gather(*(timed(client, kinds[n % 4], n) for n in range(first, first + 8)))
                if first % (arguments.requests // 8) < 8:
                    sizes.append(resident(process))
            print(f"{arguments.requests} mixed requests: MB {', '.join(f'{size:.0f}' for size in sizes)}")
    finally:
        process.terminate()
        process.wait(30)


PHOTO = photo()
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--viscoin", help="model file; default: the shipped birds")
    parser.add_argument("--requests", type=int, default=2000)
    asyncio.run(main(parser.parse_args()))
