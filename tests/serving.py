"""A server with a demo that needs no network, and requests to it."""

import contextlib
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

from jaxcnn.deploy import demo, own_images, server

# Seconds. It only ends what hangs: no response is late because the machine is busy.
HANG = 300.0


class Stub(demo.Demo):
    """Needs no network."""

    def __init__(self) -> None:
        pass

    def page(self, nonce: str) -> str:
        return f'<script nonce="{nonce}">' + 1000 * " "

    def predict(self, content: bytes) -> dict[str, Any]:
        return {"steps": own_images.prepare_image(io.BytesIO(content), "mnist").steps}


@contextlib.contextmanager
def serving(listening: server.Server) -> Iterator[server.Server]:
    listening.daemon_threads = False  # so that closing it waits for every connection to end
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    with listening:
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def ask(
    listening: server.Server,
    method: str,
    path: str,
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Sends a request; names of headers with _ for -."""
    connection = http.client.HTTPConnection(*listening.server_address[:2], timeout=HANG)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, named)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, response.headers, content


def connect(listening: server.Server) -> socket.socket:
    return socket.create_connection(listening.server_address[:2], timeout=HANG)


def received(connection: socket.socket) -> bytes:
    """Returns all that comes until the other end is closed."""
    response = b""
    while part := connection.recv(65536):
        response += part
    return response


def send(listening: server.Server, text: bytes) -> bytes:
    """Sends anything; returns all that comes back."""
    with connect(listening) as connection:
        connection.sendall(text)
        return received(connection)


def refusal(response: bytes) -> tuple[int, str]:
    """Returns the status and the sentence of a response, and checks its form."""
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert b"nosniff" in head
    assert b"Content-Security-Policy: default-src 'none'" in head
    (error,) = json.loads(body).values()
    assert "Traceback" not in error
    assert "\n" not in error
    return int(head.split()[1]), error
