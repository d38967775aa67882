"""What the service takes, as a table and JSON: python benchmarks/serving.py.

One slider, many requests at once, memory over thousands of requests, and requests that are given up.
"""

import asyncio
import contextlib
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import timing
from viscoin.errors import Refused

ROOT = Path(__file__).resolve().parents[1]
USERS = 20  # each looks at one image
TOKEN = "benchmark-of-the-service"


GROUPS = (
    ("amplify", 1, 100), ("amplify", 4, 100), ("amplify", 20, 400), ("amplify", 80, 400), ("amplify", 200, 600),
    ("predict", 1, 50), ("predict", 20, 200), ("explain", 1, 30),
)  # fmt: skip
MIXED = ("amplify", "predict", "amplify", "explain")


def serving(
    viscoin: Annotated[Path | None, typer.Option(help="Ensemble; default: the newest run, else shipped.")] = None,
    requests: Annotated[int, typer.Option(min=8, help="Mixed requests while memory is looked at.")] = 2000,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Of the usual number of the other requests.")] = 1.0,
) -> None:
    """Start a service on a free port, ask it by one client as by many, and end it."""
    process, address, results = start(viscoin)
    try:
        asyncio.run(measure(process, address, requests, share, results))
    finally:
        process.terminate()
        process.wait(30)
    timing.show(results, groups_table(results), other_table(results))


def start(model: Path | None, read_only: bool = True) -> tuple[subprocess.Popen[str], str, dict[str, Any]]:
    """A service whose models are loaded, its address, and the seconds that both took."""
    command = [sys.executable, str(ROOT / "main.py"), "serve", "--port", "0", *(["--read-only"] if read_only else [])]
    command += ["--viscoin", str(model)] if model else []
    environment = {**os.environ, "VISCOIN_TOKEN": TOKEN}
    begun, address = time.perf_counter(), ""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    lines = iter(process.stderr or ())
    while not address:
        line = next(lines, "")
        if not line:
            raise Refused("viscoin", model, "the service did not start", "start it by hand to see why")
        if found := re.search(r"http://[\w.:]+", line):
            address = found[0]
    results: dict[str, Any] = {"machine": timing.machine("cpu"), "cores": timing.cores()}
    results["listens_after_seconds"] = time.perf_counter() - begun
    with httpx.Client(base_url=address, timeout=60) as client:
        while (answer := client.get("/readyz")).status_code != 200:
            if answer.json()["status"] == "failed":
                process.terminate()
                raise Refused("viscoin", model, "the service could not load it", "start it by hand to see why")
            time.sleep(0.1)
    results["ready_after_seconds"] = time.perf_counter() - begun
    return process, address, results


async def measure(
    process: subprocess.Popen[str], address: str, requests: int, share: float, results: dict[str, Any]
) -> None:
    """All figures, into the results."""
    limits = httpx.Limits(max_connections=250, max_keepalive_connections=250)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as client:
        await together(client, "amplify", 1, USERS)  # warms up
        results["megabytes_at_first"] = resident(process)
        results["groups"] = [
            await together(client, kind, at_once, max(at_once, round(share * total))) for kind, at_once, total in GROUPS
        ]
        results["given_up"] = [await abandoned(client, wait) for wait in (0.03, 0.12)]
        results["megabytes"] = await mixed(client, process, requests)
        results["mixed_requests"] = requests


def groups_table(results: dict[str, Any]) -> list[list[str]]:
    """The groups of requests for people."""
    header = ["", "at once", "median ms", "p95 ms", "a second", "served", "503", "lost"]
    return [header] + [
        [
            row["kind"], str(row["at_once"]), f"{row['median_ms']:.0f}", f"{row['p95_ms']:.0f}",
            f"{row['a_second']:.1f}", str(row["served"]), str(row["refused"]), str(row["lost"]),
        ]
        for row in results["groups"]
    ]  # fmt: skip


def other_table(results: dict[str, Any]) -> list[list[str]]:
    """The rest for people."""
    return [
        ["ready after, s", f"{results['ready_after_seconds']:.1f}"],
        ["MB at first", f"{results['megabytes_at_first']:.0f}"],
        *(
            [
                f"given up after {row['seconds']} s, of {row['requests']}; of these never computed",
                f"{row['given_up']}; {row['never_computed']}",
            ]
            for row in results["given_up"]
        ),
        [f"MB over {results['mixed_requests']} requests", ", ".join(f"{size:.0f}" for size in results["megabytes"])],
    ]


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
    """Status and milliseconds of one request; 0 for a 503 that does not say when to come again."""
    begun = time.perf_counter()
    image = f"birds/test/{number % USERS}"
    if kind == "amplify":
        factors = {str(number % 16): round(0.05 * (number % 40), 2)}
        answer = await client.post("/api/v1/amplify", json={"image": image, "factors": factors})
    elif kind == "predict":
        answer = await client.post("/api/v1/predict/files", files={"file": ("a.jpg", PHOTO)})
    else:
        answer = await client.post("/api/v1/explain", json={"image": image, "method": "gradcam"})
    refused_without_a_word = answer.status_code == 503 and "Retry-After" not in answer.headers
    return 0 if refused_without_a_word else answer.status_code, 1000 * (time.perf_counter() - begun)


async def together(client: httpx.AsyncClient, kind: str, at_once: int, total: int) -> dict[str, Any]:
    """Ask in groups."""
    found, begun = [], time.perf_counter()
    for first in range(0, total, at_once):
        found += await asyncio.gather(*(timed(client, kind, n) for n in range(first, first + at_once)))
    seconds = time.perf_counter() - begun
    served = [ms for status, ms in found if status == 200]
    refused = sum(status == 503 for status, _ in found)
    median, p95 = (float(np.percentile(served, q)) for q in (50, 95)) if served else (float("nan"), float("nan"))
    return {
        "kind": kind, "at_once": at_once, "median_ms": median, "p95_ms": p95, "a_second": len(served) / seconds,
        "served": len(served), "refused": refused, "lost": len(found) - len(served) - refused,
    }  # fmt: skip


async def mixed(client: httpx.AsyncClient, process: "subprocess.Popen[str]", requests: int) -> list[float]:
    """Megabytes of a service after each eighth of so many requests of all kinds, eight at a time."""
    sizes, every = list[float](), max(8, requests // 8)
    for first in range(0, requests, 8):
        found = await asyncio.gather(*(timed(client, MIXED[n % 4], n) for n in range(first, first + 8)))
        if odd := [status for status, _ in found if status != 200]:
            raise Refused("requests", requests, f"one was answered by {odd[0]}", "see the log of the service")
        if (first + 8) % every < 8:
            sizes.append(resident(process))
    return sizes


async def abandoned(client: httpx.AsyncClient, wait: float, count: int = 60) -> dict[str, float]:
    """Requests at once whose clients go after `wait` seconds, if they have no answer by then."""
    before = await numbers(client)

    async def answered(number: int) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(timed(client, "amplify", number), wait)
            return True
        return False

    answers = sum(await asyncio.gather(*(answered(n) for n in range(count))))
    await asyncio.sleep(3)
    computed = (await numbers(client))["viscoin_computed_total"] - before["viscoin_computed_total"]
    return {
        "seconds": wait, "requests": count, "answered": answers, "given_up": count - answers,
        "never_computed": count - round(computed),
    }  # fmt: skip


async def numbers(client: httpx.AsyncClient) -> dict[str, float]:
    """Numbers of the quick engine from /metrics."""
    text = (await client.get("/metrics")).text
    return {name: float(value) for name, value in re.findall(r'^(\w+)\{engine="quick"\} (\S+)$', text, re.M)}


PHOTO = photo()
if __name__ == "__main__":
    timing.start(serving)
