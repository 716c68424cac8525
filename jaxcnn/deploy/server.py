"""The HTTP server of a demo: the standard library's, restricted to what `jaxcnn.deploy.demo` needs.

It has two routes: `GET /`, the page, and `POST /predict`, which takes an image file and returns
JSON. By default it listens on the loopback address. Other pages in the same browser can reach it
there as well, so it refuses requests that do not come from its own page.
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

from jaxcnn.data.image_files import FORMATS_TEXT
from jaxcnn.deploy.demo import MAX_FILE_BYTES, MEDIA_TYPES, Demo
from jaxcnn.errors import UserError

_ROUTES = {"/": ("GET", "HEAD"), "/predict": ("POST",)}
_CONNECTIONS = 64  # served at the same time
_WAITING = 1000  # in addition; each of them has a thread, too
_LINGER = 5.0  # seconds
_REASON = b'{"error": "too many requests at the same time: try again in a moment"}'
_BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_REASON), _REASON)
)


class Server(http.server.ThreadingHTTPServer):
    """Serves a demo, from the call of `serve_forever` on.

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
            demo: to serve.
            host: name or address to listen on.
            port: to listen on; 0 for a free one.
            patience: seconds within which a whole request must arrive.
            report: called with a line of text for each request that fails by a defect.

        Raises:
            UserError: the host or the port is not available.
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
        """Binds without a reverse look-up of the address by a name server."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, or refuses it if there are too many.

        Args:
            request: the connection's socket.
            client_address: of the other end.
        """
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.settimeout(0.1)  # no other connection is accepted meanwhile
            request.sendall(_BUSY)
            request.shutdown(socket.SHUT_WR)
            request.recv(2**16)  # see `_Handler.finish`
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection when fewer than `_CONNECTIONS` others are served.

        Args:
            request: the connection's socket.
            client_address: of the other end.
        """
        try:
            with self._free:
                super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores a connection that ends early, as when a browser leaves the page.

        Args:
            request: the connection's socket.
            client_address: of the other end.
        """

    def is_own(self, name: str) -> bool:
        """Returns whether a name in the Host header is one of this server.

        A foreign page can resolve its own name to this machine's address (DNS rebinding) and would
        then pass as the page's own origin. It cannot do so with an address.
        """
        if name in self._names or not self._address.is_unspecified:
            return name in self._names
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))
        return False


class _RefusedError(Exception):
    """A request that is refused: the status, the reason in a sentence, and further headers."""

    def __init__(self, status: HTTPStatus, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class _DeadlineReader(socket.SocketIO):
    """Reads from a socket until a deadline, which sending byte by byte does not extend."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        super().__init__(connection, "r")
        self._connection, self._deadline = connection, deadline

    def readinto(self, buffer: Any) -> int | None:
        self._connection.settimeout(max(self._deadline - time.monotonic(), 1e-3))
        return super().readinto(buffer)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Responds to one request and closes the connection."""

    server_version = "jaxcnn"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        deadline = time.monotonic() + cast(Server, self.server).patience
        self.rfile.close()
        self.rfile = io.BufferedReader(_DeadlineReader(self.connection, deadline))

    def finish(self) -> None:
        """Reads the rest of the body: else the connection's reset may overtake the response."""
        super().finish()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _LINGER
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(2**16):
                    break

    def do_GET(self) -> None:
        try:
            self._respond(cast(Server, self.server))
        except _RefusedError as refusal:
            self._refuse(refusal)
        except OSError:
            pass  # the browser closed the connection
        except Exception as error:  # a traceback helps nobody who draws a digit
            cast(Server, self.server).report(f"a request failed: {type(error).__name__}: {error}")
            failure = "the server failed: see its terminal"
            with contextlib.suppress(OSError):
                self._refuse(_RefusedError(HTTPStatus.INTERNAL_SERVER_ERROR, failure))

    do_HEAD = do_POST = do_GET  # noqa: N815 - the base class's names

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuses what the standard library does not parse, and unknown methods.

        Args:
            code: the status.
            message: not used.
            explain: not used.
        """
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(_not_allowed(self.path.partition("?")[0]))
        else:
            status = HTTPStatus(code)
            self._refuse(_RefusedError(status, f"this is not a request: {status.phrase.lower()}"))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing: a drawing is dozens of requests."""

    def _respond(self, server: Server) -> None:
        """Sends the page or the prediction for an image; raises `_RefusedError` otherwise."""
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
        self._check_media_type()
        content = self._read_body(self._body_length())
        try:
            prediction = server.demo.predict(content)
        except UserError as error:
            raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
        self._send(HTTPStatus.OK, json.dumps(prediction).encode(), "application/json")

    def _check_sender(self, server: Server) -> None:
        """Refuses requests of foreign pages."""
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
            raise _RefusedError(HTTPStatus.FORBIDDEN, "only this server's own page may use it")

    def _check_media_type(self) -> None:
        """Refuses files other than images."""
        media_type = self.headers.get_content_type()
        if media_type not in MEDIA_TYPES:
            raise _RefusedError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"{media_type} is not a supported image type: send a {FORMATS_TEXT} file",
            )

    def _body_length(self) -> int:
        """Returns the length of the body in bytes, within what the demo takes."""
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths or "Transfer-Encoding" in self.headers:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "give the Content-Length of the image")
        if len(lengths) > 1 or not re.fullmatch("[0-9]+", lengths[0]):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the Content-Length is one number of bytes")
        if len(lengths[0]) > 12 or int(lengths[0]) > MAX_FILE_BYTES:
            raise _RefusedError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the image is too large: send at most {MAX_FILE_BYTES // 2**20} MiB",
            )
        return int(lengths[0])

    def _read_body(self, length: int) -> bytes:
        """Returns the body, of `length` bytes."""
        try:
            content = self.rfile.read(length)
        except TimeoutError:
            raise _RefusedError(
                HTTPStatus.REQUEST_TIMEOUT, "the image took too long to arrive"
            ) from None
        if len(content) < length:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, "the image is shorter than its Content-Length"
            )
        return content

    def _refuse(self, refusal: _RefusedError) -> None:
        content = json.dumps({"error": str(refusal)}).encode()
        self._send(refusal.status, content, "application/json", **refusal.headers)

    def _send(
        self, status: HTTPStatus, content: bytes, media_type: str, nonce: str = "", **headers: str
    ) -> None:
        """Sends a response; the page's own script and style carry the nonce."""
        self.connection.settimeout(cast(Server, self.server).patience)
        own = f"'nonce-{nonce}'" if nonce else "'none'"
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{media_type}; charset=utf-8",
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
