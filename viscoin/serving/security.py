"""Who may ask: hosts, a token, the own origin, in time; and what a browser may do with what it gets. Pure ASGI."""

import asyncio
import hmac
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from viscoin.errors import Refused
from viscoin.serving.problems import problem

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
COOKIE = "viscoin_token"
OPEN = ("/healthz", "/readyz")  # asked by what watches over the process, and tell nothing
BODY_SECONDS = 30.0  # in which all of a request must have come
READING = ("GET", "HEAD", "OPTIONS")
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def new_token() -> str:
    """A random token of 128 bits."""
    return secrets.token_urlsafe(16)


def check_exposure(host: str, token: str | None) -> None:
    """Raise Refused where others could reach a service without a token."""
    if token is None and host not in LOOPBACK:
        raise Refused(
            "no_token",
            None,
            f"`host` {host} can be reached from other machines",
            "leave it out, or listen on 127.0.0.1",
        )


class Guard:
    """Lets only those requests through that may come, and adds the headers that confine pages.

    Args:
        token: what requests must bring, as a bearer token or a cookie; None for none.
        hosts: names, besides those of loopback, under which the service may be addressed; ports do not matter.
        secure: whether the cookie is only for HTTPS.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str] = ()) -> None:
        self.app, self.token = app, token
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def confined(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        answer = self._refuse(scope)
        await (answer or self.app)(scope, receive, confined)

    def _refuse(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if host_name(headers.get("host", "")) not in self.hosts:
            return problem(421, "this service is not known by that name", "start it with `allow_host`")
        if scope["method"] not in READING and not _own_origin(headers):
            return problem(403, "the request comes from another site")
        if self.token is None or path in OPEN:
            return None
        if self._knows(headers):
            return self._without_token(scope)
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", "")
        if scope["method"] == "GET" and not path.startswith("/api/") and self._same(given):
            return self._enter(scope)
        return problem(401, "the token is missing or wrong", headers={"WWW-Authenticate": "Bearer"})

    def _knows(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._same(given.strip()):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._same(cookie.value)

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), (self.token or "").encode())

    def _without_token(self, scope: Scope) -> Response | None:
        """The same page without a token in its address, which would stay in the history."""
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] == "GET" and any(name == "token" for name, _ in asked):
            return RedirectResponse(_address(scope), 303)
        return None

    def _enter(self, scope: Scope) -> Response:
        answer = RedirectResponse(_address(scope), 303)
        answer.set_cookie(
            COOKIE, self.token or "", httponly=True, samesite="strict", secure=scope.get("scheme") == "https", path="/"
        )
        return answer


class BodyInTime:
    """Answers 408 to a client whose body does not come in time, so that slow ones hold no place.

    Args:
        seconds: for all of it.
    """

    def __init__(self, app: ASGIApp, seconds: float = BODY_SECONDS) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        until, complete = asyncio.get_running_loop().time() + self.seconds, False

        async def timely() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not come within {self.seconds:g} s") from None
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, timely, send)


def _address(scope: Scope) -> str:
    """The path that was asked for, relative to it, with its query but for the token."""
    asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    query = urlencode([(name, value) for name, value in asked if name != "token"])
    last = scope["path"].rpartition("/")[2]
    return f"./{last}" + (f"?{query}" if query else "")


def host_name(host: str) -> str:
    """A Host header without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _own_origin(headers: Headers) -> bool:
    """Whether a request that changes something comes from our own pages, or from no browser at all."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or (origin != "null" and urlsplit(origin).netloc.lower() == headers.get("host", "").lower())
