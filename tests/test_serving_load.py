"""Many at once: everybody is answered, memory stays, and nobody computes what nobody waits for. Times are printed."""

import asyncio
import sys
import threading
from pathlib import Path

import httpx
import pytest
from test_serving import API, BEARER, served  # noqa: F401  # a fixture of a service with a tiny ensemble

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import serving  # noqa: E402

ENSEMBLE = ROOT / "viscoin" / "assets" / "birds" / "viscoin.safetensors"


def asked(app, kind, count):
    """Statuses and headers of so many requests at once, in this process."""

    async def all_of_them():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=BEARER) as found:
            body = {"image": "birds/test/1", "factors": {"1": 2.0}}
            return await asyncio.gather(*(found.post(f"{API}/{kind}", json=body, timeout=60) for _ in range(count)))

    return asyncio.run(all_of_them())


def test_of_200_at_once_each_is_served_or_told_when_to_come_again(served):  # noqa: F811
    answers = asked(served[0].app, "amplify", 200)
    statuses = [answer.status_code for answer in answers]
    assert len(statuses) == 200 and set(statuses) <= {200, 503}
    assert statuses.count(200) >= 64  # as many as may wait
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1 and answer.json()["status"] == 503
    pictures = {answer.json()["picture"] for answer in answers if answer.status_code == 200}
    assert len(pictures) == 1  # the same whatever it was computed together with
    assert len(served[0].app.state.service.quick) == 0
    assert served[0].post(f"{API}/amplify", json={"image": "birds/test/1"}).status_code == 200


def test_a_full_queue_is_told_at_once(served):  # noqa: F811
    engine, go, begun = served[0].app.state.service.quick, threading.Event(), threading.Event()

    def slow(items):
        begun.set()
        go.wait(30)
        return items

    first = engine.submit("slow", slow, [0])
    assert begun.wait(10)
    waiting = [engine.submit("slow", slow, [i]) for i in range(engine.waiting)]
    try:
        [answer] = asked(served[0].app, "amplify", 1)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and not first.done()
    finally:
        go.set()
    assert [future.result(30) for future in waiting] == [[i] for i in range(engine.waiting)]


# --- a process of its own, with the shipped ensemble ------------------------------------------------------------------


@pytest.fixture(scope="module")
def process():
    process, address, _ = serving.start(ENSEMBLE)
    threading.Thread(target=process.stderr.read, daemon=True).start()
    yield process, address
    process.terminate()
    assert process.wait(60) == 0


def run(address, what):
    """What a coroutine finds that is given a client."""

    async def asking():
        limits = httpx.Limits(max_connections=250, max_keepalive_connections=250)
        headers = {"Authorization": f"Bearer {serving.TOKEN}"}
        async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as found:
            await serving.together(found, "amplify", 1, serving.USERS)  # warms up
            return await what(found)

    return asyncio.run(asking())


@pytest.mark.long
@pytest.mark.parametrize("kind", ["amplify", "predict"])
def test_over_http_200_at_once_lose_nothing(process, kind):
    row = run(process[1], lambda found: serving.together(found, kind, 200, 400))
    print(row)
    assert row["lost"] == 0 and row["served"] + row["refused"] == 400 and row["served"] >= 64


@pytest.mark.long
def test_what_was_given_up_is_hardly_computed(process):
    async def behind(found):
        """Given up while others, who wait for their answers, are served."""
        before = await serving.numbers(found)
        others = [asyncio.ensure_future(serving.timed(found, "amplify", n)) for n in range(20)]
        row = await serving.abandoned(found)
        statuses = [status for status, _ in await asyncio.gather(*others)]
        after = await serving.numbers(found)
        return row, statuses, after["viscoin_computed_total"] - before["viscoin_computed_total"]

    row, statuses, computed = run(process[1], behind)
    print(row, f"{computed:.0f} computed in all")
    assert statuses == [200] * 20 and row["requests"] == 60
    assert computed - 20 <= 10  # at least 50 of the 60 were not


@pytest.mark.long
def test_memory_stays_over_2000_requests(process):
    sizes = run(process[1], lambda found: serving.mixed(found, process[0], 2000))
    print([round(size) for size in sizes], "MB")
    assert len(sizes) == 8 and max(sizes[1:]) <= 1.02 * sizes[0]
