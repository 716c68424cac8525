"""The server of a demo: the standard library's, kept to what `jaxcnn.deploy.demo` needs.

It has two addresses: `GET /`, the page, and `POST /predict`, whose body is a picture's file and
whose answer is JSON. It listens on the own machine unless told otherwise, and answers only its own
page there: other pages in the same browser can reach it as well.
"""

import contextlib
import http.server
import io
import ipaddress
import json
import re
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlsplit

from jaxcnn.deploy import picture
from jaxcnn.deploy.demo import LARGEST, MEDIA_TYPES, Demo
from jaxcnn.errors import UserError

_ROUTES = {"/": ("GET", "HEAD"), "/predict": ("POST",)}
_CONNECTIONS = 64  # answered at once
_WAITING = 1000  # beside those; each has a thread too
_LINGER = 5.0  # seconds
_REASON = b'{"error": "too many ask at once: try again in a moment"}'
_BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_REASON), _REASON)
)


class Server(http.server.ThreadingHTTPServer):
    """Offers a demo. It answers once `serve_forever` runs.

    Attributes:
        url: of the page.
        is_local: whether only this machine can reach it.
    """

    # Connections that wait to be accepted; beyond, the system resets them or lets them hang.
    request_queue_size = socket.SOMAXCONN

    def __init__(
        self,
        demo: Demo,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        patience: float = 30.0,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Opens the port.

        Args:
            demo: to offer.
            host: name or address to listen on.
            port: to listen on; 0 for a free one.
            patience: seconds within which a request has to be there as a whole.
            report: called with a line of text about a request that failed by a defect.

        Raises:
            UserError: the host or the port cannot be had.
        """
        self.demo = demo
        self.patience = patience
        self.report = report
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._room = threading.BoundedSemaphore(_CONNECTIONS + _WAITING)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, *_, (address, *_) = found[0]
            super().__init__((str(address), port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"cannot listen on port {port} of {host or 'no host'} ({reason}): give --host an "
                "address of this machine and --port a free number up to 65535, or leave them out"
            ) from None
        self._address = ipaddress.ip_address(str(address).partition("%")[0])
        self.is_local = self._address.is_loopback
        self._names = {host.lower(), str(self._address)}
        if self.is_local or self._address.is_unspecified:
            self._names.add("localhost")
        if self._address.is_unspecified:
            self._names.add(socket.gethostname().lower())
        loopback = {4: "127.0.0.1", 6: "::1"}[self._address.version]
        shown = loopback if self._address.is_unspecified else str(self._address)
        shown = f"[{shown}]" if ":" in shown else shown
        self.url = f"http://{shown}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Binds without asking a name server what the address is called."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Gives a connection a thread, or word that there are too many of them."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.1)  # nobody else is accepted for so long
            request.sendall(_BUSY)
            request.shutdown(socket.SHUT_WR)
            request.recv(2**16)  # see `_Handler.finish`
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection once it is its turn."""
        try:
            with self._free:
                super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keeps silent: a browser that went away is no event."""

    def is_own(self, name: str) -> bool:
        """Returns whether a name of the Host header is one of this server.

        A foreign page can give a name of its own this machine's address (DNS rebinding) and would
        then be let in as the page's own origin; it cannot do so with an address.
        """
        if name in self._names or not self._address.is_unspecified:
            return name in self._names
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return False


class _RefusedError(Exception):
    """A request that is not one of ours, and why, in a sentence."""

    def __init__(self, status: HTTPStatus, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class _Until(socket.SocketIO):
    """Reads from a socket until a moment: sending byte by byte gains no time."""

    def __init__(self, connection: socket.socket, moment: float) -> None:
        super().__init__(connection, "r")
        self._connection, self._moment = connection, moment

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(max(self._moment - time.monotonic(), 1e-3))
        return super().readinto(buffer)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request, and closes the connection."""

    server_version = "jaxcnn"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        patience = cast(Server, self.server).patience
        self.rfile.close()
        self.rfile = io.BufferedReader(_Until(self.connection, time.monotonic() + patience))

    def finish(self) -> None:
        """Takes what of a body was not read: else the connection's end may overtake the answer."""
        super().finish()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _LINGER
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(2**16):
                    break

    def do_GET(self) -> None:
        server = cast(Server, self.server)
        try:
            self._check_sender(server)
            path = self.path.partition("?")[0]
            if path not in _ROUTES:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here: the page is at /")
            if self.command not in _ROUTES[path]:
                raise _not_allowed(path)
            if path == "/":
                nonce = secrets.token_urlsafe(16)
                self._send(HTTPStatus.OK, server.demo.page(nonce).encode(), "text/html", nonce)
                return
            try:
                answer = server.demo.answer(self._read_picture())
            except UserError as error:
                raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
            self._send(HTTPStatus.OK, json.dumps(answer).encode(), "application/json")
        except _RefusedError as refusal:
            self._refuse(refusal)
        except OSError:
            pass  # the browser went away
        except Exception as error:  # a traceback helps nobody who draws a digit
            server.report(f"a request failed: {type(error).__name__}: {error}")
            with contextlib.suppress(OSError):
                self._refuse(
                    _RefusedError(
                        HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed: see its terminal"
                    )
                )

    do_HEAD = do_POST = do_GET  # noqa: N815 - the base class's names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers what the standard library refuses: what is no HTTP, and methods not known."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(_not_allowed(self.path.partition("?")[0]))
        else:
            status = HTTPStatus(code)
            self._refuse(_RefusedError(status, f"this is no request: {status.phrase.lower()}"))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keeps silent: a drawing is dozens of requests."""

    def _check_sender(self, server: Server) -> None:
        """Refuses what comes from a foreign page."""
        hosts = self.headers.get_all("Host", [])
        name = None
        with contextlib.suppress(ValueError):
            name = urlsplit(f"//{hosts[0]}").hostname if len(hosts) == 1 else None
        if name is None:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, "a request has one Host header, a name or address"
            )
        if not server.is_own(name):
            raise _RefusedError(
                HTTPStatus.MISDIRECTED_REQUEST, f"this server is not {name}: open {server.url}"
            )
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise _RefusedError(HTTPStatus.FORBIDDEN, "only the page of this server may ask it")

    def _read_picture(self) -> bytes:
        kind = self.headers.get_content_type()
        if kind not in MEDIA_TYPES:
            known = (
                f"{', '.join(list(picture.MEDIA_TYPES)[:-1])} or {list(picture.MEDIA_TYPES)[-1]}"
            )
            raise _RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"{kind} is no kind of picture that is read: send a {known} file",
            )
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths or "Transfer-Encoding" in self.headers:
            raise _RefusedError(
                HTTPStatus.LENGTH_REQUIRED, "give the Content-Length of the picture"
            )
        if len(lengths) > 1 or not re.fullmatch("[0-9]+", lengths[0]):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the Content-Length is one number of bytes")
        if len(lengths[0]) > 12 or int(lengths[0]) > LARGEST:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the picture is too large: send at most {LARGEST // 2**20} MiB",
            )
        try:
            content = self.rfile.read(int(lengths[0]))
        except TimeoutError:
            raise _RefusedError(
                HTTPStatus.REQUEST_TIMEOUT, "the picture took too long to come"
            ) from None
        if len(content) < int(lengths[0]):
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, "the picture is shorter than its Content-Length"
            )
        return content

    def _refuse(self, refusal: _RefusedError) -> None:
        content = json.dumps({"error": str(refusal)}).encode()
        self._send(refusal.status, content, "application/json", **refusal.headers)

    def _send(
        self, status: HTTPStatus, content: bytes, kind: str, nonce: str = "", **headers: str
    ) -> None:
        self.connection.settimeout(cast(Server, self.server).patience)
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": (
                f"default-src 'none'; script-src {own}; style-src {own}; img-src data: blob:; "
                "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _not_allowed(path: str) -> _RefusedError:
    methods = _ROUTES.get(path, ("GET", "HEAD"))
    return _RefusedError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        f"{path} takes {' and '.join(methods)}",
        Allow=", ".join(methods),
    )
