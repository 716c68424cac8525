import contextlib
import io
import json
import queue
import socket
import struct
import threading
import time
from typing import Any

import pytest
from PIL import Image

from jaxcnn.deploy import demo, server
from tests.serving import HANG, ask, connect, received, refusal, serving


class Clock:
    """The server's clock, which a test can put forward.

    Attributes:
        ahead: seconds.
        read: has an entry for every time that the server has looked at it.
    """

    def __init__(self) -> None:
        self.ahead = 0.0
        self.read: queue.Queue[None] = queue.Queue()

    def monotonic(self) -> float:
        now = time.monotonic() + self.ahead
        self.read.put(None)
        return now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("jaxcnn.deploy.server.time", found)
    return found


class Watched(server.Server):
    """Counts the connections that it has closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.closed: queue.Queue[None] = queue.Queue()
        super().__init__(*args, **options)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        super().process_request_thread(request, client_address)
        self.closed.put(None)


@pytest.fixture(scope="module")
def png() -> bytes:
    image = Image.new("L", (100, 100))
    image.paste(255, (45, 20, 55, 80))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
HALF = HEAD + b"Content-Length: 100\r\n\r\nabc"


def test_silence_ends(offered: demo.Demo) -> None:
    with serving(server.Server(offered, patience=0.05)) as found, connect(found) as silent:
        assert received(silent) == b""


@pytest.mark.parametrize(("sent", "status"), [(b"POST /predict HT", None), (HALF, 408)])
def test_a_byte_now_and_then_gains_no_time(
    offered: demo.Demo, clock: Clock, sent: bytes, status: int | None
) -> None:
    with serving(server.Server(offered, patience=HANG)) as found, connect(found) as trickling:
        trickling.sendall(sent)
        for _ in range(2):  # by then it has set its limit, and waits
            clock.read.get(timeout=HANG)
        clock.ahead = 2 * HANG
        trickling.sendall(b"X")  # the wait for the next one is over before it begins
        response = received(trickling)
    assert response == b"" if status is None else refusal(response)[0] == status


def test_half_an_image(listening: server.Server) -> None:
    with connect(listening) as connection:
        connection.sendall(HALF)
        connection.shutdown(socket.SHUT_WR)
        assert refusal(received(connection))[0] == 400


def test_a_client_that_stays_is_left(
    offered: demo.Demo, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sends after its response is taken for a while, and gains no time either."""
    monkeypatch.setattr("jaxcnn.deploy.server._LINGER", HANG)
    with serving(Watched(offered, patience=HANG)) as found, connect(found) as staying:
        staying.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert received(staying).startswith(b"HTTP/1.0 200 ")
        # Twice for the request, as above, and twice for what comes after it.
        for _ in range(4):
            clock.read.get(timeout=HANG)
        staying.sendall(b"X")
        clock.read.get(timeout=HANG)  # taken, and it waits for more
        assert found.closed.empty()
        clock.ahead = 2 * HANG
        staying.sendall(b"X")
        found.closed.get(timeout=HANG)


def test_a_silent_client_is_left_too(offered: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.deploy.server._LINGER", 0.05)
    with serving(Watched(offered, patience=10 * HANG)) as found, connect(found) as staying:
        staying.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert received(staying).startswith(b"HTTP/1.0 200 ")
        found.closed.get(timeout=HANG)


@pytest.mark.parametrize("asks", [False, True])
def test_a_browser_that_goes_away_is_no_event(
    offered: demo.Demo,
    asks: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked, gone = threading.Event(), threading.Event()

    def page(nonce: str) -> str:
        asked.set()
        assert gone.wait(HANG)
        return 10_000_000 * " "

    monkeypatch.setattr(offered, "page", page)
    said: list[str] = []
    with serving(Watched(offered, patience=HANG, report=said.append)) as found:
        with connect(found) as leaving:
            # Closing resets the connection: what is sent or read then is an error.
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaving.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"\r\n" * asks)
            if asks:
                assert asked.wait(HANG)
        gone.set()
        found.closed.get(timeout=HANG)
    assert said == []
    assert capfd.readouterr() == ("", "")


def test_many_at_once(listening: server.Server, png: bytes) -> None:
    responses = []

    def one() -> None:
        responses.append(ask(listening, "POST", "/predict", png, Content_Type="image/png"))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in responses] == [200] * 20
    assert len({content for _, _, content in responses}) == 1


Held = tuple["queue.Queue[None]", threading.Semaphore]


@pytest.fixture
def held_back(offered: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> Held:
    """Who has asked for the page, and what lets one of them have it."""
    arrived: queue.Queue[None] = queue.Queue()
    go_on = threading.Semaphore(0)

    def page(nonce: str) -> str:
        arrived.put(None)
        assert go_on.acquire(timeout=HANG)
        return "here"

    monkeypatch.setattr(offered, "page", page)
    return arrived, go_on


def test_a_crowd_waits_its_turn(offered: demo.Demo, held_back: Held) -> None:
    """More connections than there are threads, all made before the first is accepted."""
    arrived, go_on = held_back
    waiting = server.Server(offered, patience=HANG)
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect(waiting)) for _ in range(100)]
        for connection in crowd:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stack.enter_context(serving(waiting))
        for _ in range(64):
            arrived.get(timeout=HANG)
        # None of the 64 threads has ended, so there is none for the others.
        assert not waiting._free.acquire(blocking=False)
        assert arrived.empty()
        go_on.release(100)
        for connection in crowd:
            assert received(connection).endswith(b"here")
            connection.close()  # the server waits for that


def test_one_connection_too_many_is_refused(
    offered: demo.Demo, held_back: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is served, one waits, and the third one is no longer reset."""
    arrived, go_on = held_back
    monkeypatch.setattr("jaxcnn.deploy.server._CONNECTIONS", 1)
    monkeypatch.setattr("jaxcnn.deploy.server._WAITING", 1)
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        serving(server.Server(offered, patience=HANG)) as busy,
        connect(busy) as first,
        connect(busy) as second,
        connect(busy) as third,
    ):
        for connection in (first, second, third):  # accepted in the order in which they came
            connection.sendall(request)
        arrived.get(timeout=HANG)
        response = received(third)
        assert response.startswith(b"HTTP/1.0 503 ")
        assert b"\r\nRetry-After: 1\r\n" in response
        assert "too many requests" in json.loads(response.partition(b"\r\n\r\n")[2])["error"]
        go_on.release(2)
        for connection in (first, second):
            assert received(connection).endswith(b"here")
            connection.close()  # the server waits for that
