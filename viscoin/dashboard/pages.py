"""Pages by their address. They are rendered from templates; what they show comes from the API."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse
from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).resolve().parent
# Address, template, title; those in the navigation in their order.
PAGES = (
    ("/", "explain.html.j2", "Explain", True),
    ("/concepts", "concepts.html.j2", "Concepts", True),
    ("/concepts/{number}", "concept.html.j2", "Concept", False),
    ("/predictions", "predictions.html.j2", "Predictions", True),
    ("/runs", "runs.html.j2", "Runs", True),
    ("/runs/{run}", "run.html.j2", "Run", False),
    ("/train", "train.html.j2", "Train", True),
    ("/data", "data.html.j2", "Data", True),
    ("/fallacies", "fallacies.html.j2", "Fallacies", True),
)


def mount_pages(app: FastAPI) -> None:
    """Add all pages, and the files that they need."""
    templates = Environment(
        loader=PackageLoader("viscoin.dashboard", "pages"), autoescape=select_autoescape(default=True),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    for path, template, title, _ in PAGES:
        app.get(path, response_class=HTMLResponse, include_in_schema=False)(_page(templates, path, template, title))

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        return _rendered(templates, "/docs", "docs.html.j2", "API", request, operations=_operations(app))

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> FileResponse:
        return FileResponse(FOLDER / "static" / "icon.svg", media_type="image/svg+xml")


def _page(templates: Environment, path: str, template: str, title: str) -> Callable[..., HTMLResponse]:
    def page(request: Request) -> HTMLResponse:
        return _rendered(templates, path, template, title, request, **request.path_params)

    return page


def _rendered(
    templates: Environment, path: str, template: str, title: str, request: Request, **values: Any
) -> HTMLResponse:
    depth = path.count("/") - 1
    service = request.app.state.service
    links = [(address.removeprefix("/"), name, address == path) for address, _, name, shown in PAGES if shown]
    text = templates.get_template(template).render(
        root="../" * depth or "./", links=links, title=title, version=request.app.state.version,
        read_only=service.settings.read_only, **values,
    )  # fmt: skip
    return HTMLResponse(text, headers={"Cache-Control": "no-cache"})


def _operations(app: FastAPI) -> list[dict[str, Any]]:
    """What the OpenAPI document says, as rows for people."""
    found = []
    for path, methods in app.openapi()["paths"].items():
        for method, entry in methods.items():
            found.append({
                "method": method.upper(), "path": path, "text": entry.get("description", ""),
                "parameters": [
                    {"name": one["name"], "in": one["in"], "required": one.get("required", False),
                     "text": one.get("description", "")}
                    for one in entry.get("parameters", ())
                ],
                "body": _body(app, entry), "tag": (entry.get("tags") or ["other"])[0],
            })  # fmt: skip
    return found


def _body(app: FastAPI, entry: dict[str, Any]) -> list[dict[str, Any]]:
    content = entry.get("requestBody", {}).get("content", {})
    for kind in content.values():
        schema = kind.get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        schema = app.openapi()["components"]["schemas"].get(name, schema)
        required = schema.get("required", ())
        return [
            {"name": key, "in": "body", "required": key in required, "text": value.get("description", "")}
            for key, value in schema.get("properties", {}).items()
        ]
    return []
