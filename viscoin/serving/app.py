"""The application: endpoints, pages, health, metrics, errors and the guard before all of it."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from viscoin.dashboard.pages import mount_pages
from viscoin.runs.revision import describe_version
from viscoin.serving import analysis, api, marks, states, watching
from viscoin.serving.problems import ERRORS, AsProblems, install
from viscoin.serving.security import BodyInTime, Guard
from viscoin.serving.state import Service, Settings
from viscoin.serving.telemetry import Telemetry

BODY = 10 * 1024 * 1024


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI application; models are loaded when it starts."""
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="viscoin", version="1", summary="Explanations of image classifiers by concepts and maps",
        lifespan=lifespan, docs_url=None, redoc_url=None,
        responses=ERRORS, form_limits={"max_files": api.MOST_FILES, "max_fields": 8},
    )  # fmt: skip
    app.state.service = service
    app.state.version = describe_version()
    install(app)
    app.include_router(api.router, prefix="/api/v1")
    app.include_router(analysis.router, prefix="/api/v1")
    app.include_router(states.router, prefix="/api/v1")
    app.include_router(watching.router, prefix="/api/v1")
    app.include_router(marks.router, prefix="/api/v1")
    telemetry = Telemetry(service)
    _health(app, service, telemetry)
    mount_pages(app)
    app.add_middleware(BodyInTime)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=BODY)
    app.add_middleware(AsProblems)
    app.add_middleware(telemetry.middleware)
    app.add_middleware(Guard, token=settings.token, hosts=settings.hosts)
    return app


def _health(app: FastAPI, service: Service, telemetry: Telemetry) -> None:
    @app.get("/healthz", tags=["health"])
    async def alive() -> dict[str, str]:
        """The process is there."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"])
    async def ready() -> Any:
        """The models are loaded."""
        if service.models.ready.is_set():
            return {"status": "ready", "models": [model.id for model in service.models]}
        state = "failed" if service.models.failed else "loading"
        return JSONResponse({"status": state}, 503, {"Retry-After": "2"})

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def numbers(_request: Request) -> PlainTextResponse:
        """Numbers of the service as Prometheus reads them."""
        return PlainTextResponse(telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")
