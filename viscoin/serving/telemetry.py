"""Numbers of the service for Prometheus, by its own client library."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viscoin.serving.state import Service

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)


class Telemetry:
    """Requests by route and status, their time, and the state of the engines."""

    def __init__(self, service: Service) -> None:
        self.service, self.registry = service, CollectorRegistry()
        self.requests = Counter("viscoin_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "viscoin_request_seconds",
            "Time to the end of an answer",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        ProcessCollector(registry=self.registry)
        self.registry.register(self)  # type: ignore[arg-type]  # has `collect`

    def collect(self) -> Any:
        """What the engines have done."""
        waiting = GaugeMetricFamily("viscoin_queue_length", "Requests that wait", labels=["engine"])
        counters = {
            "computed": "Items computed", "batches": "Batches computed", "skipped": "Requests given up before that",
            "rejected": "Requests for which there was no room",
        }  # fmt: skip
        families = {
            name: CounterMetricFamily(f"viscoin_{name}", text, labels=["engine"]) for name, text in counters.items()
        }
        for name in ("quick", "slow"):
            engine = getattr(self.service, name)
            waiting.add_metric([name], len(engine))
            for counter, family in families.items():
                family.add_metric([name], getattr(engine.counts, counter))
        yield from (waiting, *families.values())

    def text(self) -> str:
        """All numbers in the text format."""
        return generate_latest(self.registry).decode()

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Count what passes through an application."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            begun, status = time.perf_counter(), ["500"]

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status[0] = str(message["status"])
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self.requests.labels(route, status[0]).inc()
                self.seconds.labels(route).observe(time.perf_counter() - begun)

        return counted
