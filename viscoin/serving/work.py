"""From a request to the engines and back: full queues, deadlines, and clients that are gone."""

import asyncio
from collections.abc import Hashable, Sequence
from concurrent.futures import CancelledError
from typing import Any

from fastapi import Request

from viscoin.serving.engine import Batch, Engine, Full, Late
from viscoin.serving.problems import Problem

LOOK = 0.05  # seconds between two looks whether the client is still there


async def compute(request: Request, engine: Engine, kind: Hashable, run: Batch, items: Sequence[Any]) -> list[Any]:
    """What an engine makes of items; given up when the client goes.

    Raises:
        Problem: 503 where the queue is full, 504 where its turn came too late.
    """
    try:
        waiting = engine.submit(kind, run, items)
    except Full:
        detail = f"{engine.waiting} requests wait already"
        raise Problem(503, detail, "try again in a moment", {"Retry-After": "1"}) from None
    future = asyncio.wrap_future(waiting)
    while True:
        done, _ = await asyncio.wait({future}, timeout=LOOK)
        if done:
            break
        if await request.is_disconnected():
            waiting.cancel()
            raise Problem(503, "the client is gone")
    try:
        return future.result()
    except Late:
        raise Problem(504, f"its turn did not come within {engine.deadline:g} s", "try again in a moment") from None
    except (CancelledError, asyncio.CancelledError):
        raise Problem(503, "the service is ending", headers={"Retry-After": "5"}) from None
