"""Starting the service, and ending it without cutting anybody off."""

import logging
import os
import socket
import threading
from types import FrameType

import uvicorn

from viscoin.errors import Refused
from viscoin.serving.app import create_app
from viscoin.serving.security import check_exposure
from viscoin.serving.state import Service, Settings

LIMIT = 256  # connections
GRACE = 10  # seconds that requests get to end
LAST = 5  # more, for threads that compute still; a request may prepare images for minutes
BACKLOG = 2048  # connections that wait to be taken

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Ends streams as soon as it is told to end, as they would never end by themselves; and does end in the end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.last_resort: threading.Timer | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.ending.set()
        if self.last_resort is None:  # a thread cannot be cancelled
            self.last_resort = threading.Timer(GRACE + LAST, self._give_up, (sig,))
            self.last_resort.daemon = True
            self.last_resort.start()
        super().handle_exit(sig, frame)

    def _give_up(self, sig: int) -> None:
        logger.warning("ended after %d s, although something was computing still", GRACE + LAST)
        os._exit(128 + sig)


def serve(settings: Settings, host: str = "127.0.0.1", port: int = 8000, prefix: str = "") -> None:
    """Answer until a signal comes.

    Args:
        port: 0 for any that is free.
        prefix: the path under which a proxy shows the service.

    Raises:
        Refused: the address cannot be used, or others could reach it without a token.
    """
    check_exposure(host, settings.token)
    app = create_app(settings)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", server_header=False, limit_concurrency=LIMIT,
        timeout_graceful_shutdown=GRACE, timeout_keep_alive=30, root_path=prefix, lifespan="on",
    )  # fmt: skip
    listening = _bind(host, port)
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    token = "" if settings.token is None else f"?token={settings.token}"
    logger.info("listening on http://%s:%d/%s", shown, bound, token)
    if settings.read_only:
        logger.info("read-only: no trainings are started, none is steered")
    server = _Server(config, app.state.service)
    try:
        server.run(sockets=[listening])
    finally:
        if server.last_resort is not None:
            server.last_resort.cancel()
        listening.close()


def _bind(host: str, port: int) -> socket.socket:
    """A socket that listens, so that who reads the address can connect at once."""
    listening = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        said = error.strerror or str(error)
        raise Refused(
            "port", port, f"cannot listen on {host} ({said})", "choose another, or 0 for any that is free"
        ) from error
    return listening
