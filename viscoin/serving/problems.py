"""Every error of the service as RFC 9457 says: `application/problem+json`, also those of the framework itself."""

import errno
import logging
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viscoin.errors import Refused

logger = logging.getLogger(__name__)

KIND = "application/problem+json"
REMEDIES = {
    401: "open the address that was printed at the start, or send `Authorization: Bearer TOKEN`",
    404: "see /docs for what there is",
    405: "see /docs for the methods of this address",
    413: "send less: at most 16 files and 10 MB",
}


class ProblemBody(BaseModel):
    """An error as RFC 9457 has it; `remedy` and `errors` are ours."""

    type: Literal["about:blank"]
    title: str
    status: int
    detail: str
    remedy: str | None = None
    errors: list[dict[str, str]] | None = None


# What every address may answer beside what it is for; by these the errors are in the OpenAPI document.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {KIND: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}}
    for status, text in (("4XX", "The request cannot be answered"), ("5XX", "Not now, or an error of the service"))
}


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        detail: what is wrong, one sentence.
        remedy: what to do instead.
        headers: more of them, such as Retry-After.
    """

    def __init__(self, status: int, detail: str, remedy: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail)
        self.status, self.detail, self.remedy, self.headers = status, detail, remedy, headers


def problem(
    status: int,
    detail: str,
    remedy: str = "",
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer (RFC 9457): type, title, status, detail, and ours: remedy, errors by their place."""
    remedy = (remedy or REMEDIES.get(status, "")).replace("`", "")
    content: dict[str, Any] = {
        "type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail,
    }  # fmt: skip
    if remedy:
        content["remedy"] = remedy
    if errors:
        content["errors"] = list(errors)
    return JSONResponse(content, status, headers, media_type=KIND)


def install(app: FastAPI) -> None:
    """Have all errors of an app answered as problems, and its OpenAPI document say so."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        document = described()
        document["components"]["schemas"]["ProblemBody"] = ProblemBody.model_json_schema()
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it

    @app.exception_handler(Problem)
    async def _ours(_request: Request, error: Problem) -> JSONResponse:
        return problem(error.status, error.detail, error.remedy, headers=error.headers)

    @app.exception_handler(Refused)
    async def _refused(request: Request, error: Refused) -> JSONResponse:
        return refused(error, request.app.state.service.settings.runs)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = [{"loc": ".".join(map(str, one["loc"])), "msg": str(one["msg"])} for one in error.errors()]
        broken = any(one["type"] == "json_invalid" for one in error.errors())
        first = f"{found[0]['loc']}: {found[0]['msg']}" if found else "the values do not fit"
        return problem(400 if broken else 422, first, "see /docs for what is expected", found)

    @app.exception_handler(HTTPException)
    async def _framework(_request: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(OSError)
    async def _disk(request: Request, error: OSError) -> JSONResponse:
        return problem(507, "the disk is full") if _is_full(error) else await _bug(request, error)

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        number = uuid.uuid4().hex[:12]
        logger.error("error %s in %s %s", number, request.method, request.url.path, exc_info=error)
        return problem(500, f"an error of the service, number {number}", "its log says more; please report it")


class AsProblems:
    """Turns errors that the framework answers in plain text, before any handler is asked, into problems. Pure ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        plain: list[JSONResponse] = []

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and _is_plain(message):
                plain.append(problem(message["status"], HTTPStatus(message["status"]).phrase))
                return
            if not plain:
                await send(message)
            elif not message.get("more_body"):
                await plain[0](scope, receive, send)

        await self.app(scope, receive, watched if scope["type"] == "http" else send)


def _is_plain(message: Message) -> bool:
    return Headers(raw=message["headers"]).get("content-type", "").startswith("text/plain")


def refused(error: Refused, runs: Path) -> JSONResponse:
    """What a command line would say with exit code 2, with paths from the folder of runs on; 507 for a full disk."""
    place = [] if error.parameter is None else [{"loc": error.parameter, "msg": error.reason}]
    shown = str(Refused(error.parameter, error.value, error.reason)).replace(f"{runs.absolute()}/", "")
    return problem(507 if _is_full(error.__cause__) else 422, shown, error.remedy, place)


def _is_full(error: BaseException | None) -> bool:
    """Whether a disk was full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
