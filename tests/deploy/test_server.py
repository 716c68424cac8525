import contextlib
import http.client
import io
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from jaxcnn.deploy import demo, picture, server
from jaxcnn.errors import UserError

# Seconds. It only ends what hangs: no answer is late because the machine is busy.
HANG = 300.0


class Stub(demo.Demo):
    """Needs no network."""

    def __init__(self) -> None:
        pass

    def page(self, nonce: str) -> str:
        return f'<script nonce="{nonce}">' + 1000 * " "

    def answer(self, content: bytes) -> dict[str, Any]:
        return {"steps": picture.prepare(io.BytesIO(content), "mnist").steps}


@contextlib.contextmanager
def serving(listening: server.Server) -> Iterator[server.Server]:
    listening.daemon_threads = False  # so that closing it waits for every connection to end
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    with listening:
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.fixture
def offered() -> demo.Demo:
    return Stub()


@pytest.fixture
def listening(offered: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[server.Server]:
    monkeypatch.setattr("jaxcnn.deploy.server._LINGER", HANG)
    said: list[str] = []
    with serving(server.Server(offered, patience=HANG, report=said.append)) as found:
        yield found
    assert said == []


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
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def send(listening: server.Server, text: bytes) -> bytes:
    """Sends anything; returns all that comes back."""
    with connect(listening) as connection:
        connection.sendall(text)
        return received(connection)


def refusal(answer: bytes) -> tuple[int, str]:
    """Returns the status and the sentence of an answer, and checks its form."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert b"nosniff" in head
    assert b"Content-Security-Policy: default-src 'none'" in head
    (error,) = json.loads(body).values()
    assert "Traceback" not in error
    assert "\n" not in error
    return int(head.split()[1]), error


def test_the_page(listening: server.Server) -> None:
    status, headers, content = ask(listening, "GET", "/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    nonce = headers["Content-Security-Policy"].split("'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">' in content.decode()
    assert nonce not in ask(listening, "GET", "/?again")[1]["Content-Security-Policy"]
    status, headers, content = ask(listening, "HEAD", "/")
    assert (status, content) == (200, b"")
    assert int(headers["Content-Length"]) > 1000


def test_an_answer(listening: server.Server, png: bytes) -> None:
    status, headers, content = ask(listening, "POST", "/predict", png, Content_Type="image/png")
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    assert json.loads(content) == json.loads(json.dumps(listening.demo.answer(png)))


@pytest.mark.parametrize(
    ("request_line", "headers", "body", "status", "said"),
    [
        ("GET /favicon.ico", "", b"", 404, "the page is at /"),
        ("GET /../../etc/passwd", "", b"", 404, "the page is at /"),
        ("GET http://127.0.0.1/", "", b"", 404, "the page is at /"),
        ("POST /", "", b"", 405, "/ takes GET and HEAD"),
        ("GET /predict", "", b"", 405, "/predict takes POST"),
        ("OPTIONS /predict", "", b"", 405, "/predict takes POST"),
        ("DELETE /", "", b"", 405, "/ takes GET and HEAD"),
        ("POST /predict", "Content-Type: image/png", b"", 411, "Content-Length"),
        (
            "POST /predict",
            "Content-Type: image/png\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
            b"0\r\n\r\n",
            411,
            "Content-Length",
        ),
        (
            "POST /predict",
            f"Content-Type: image/png\r\nContent-Length: {demo.LARGEST + 1}",
            b"",
            413,
            "at most 16 MiB",
        ),
        (
            "POST /predict",
            f"Content-Type: image/png\r\nContent-Length: {'9' * 5000}",
            b"",
            413,
            "at most 16 MiB",
        ),
        ("POST /predict", "Content-Type: image/png\r\nContent-Length: -1", b"", 400, "one number"),
        ("POST /predict", "Content-Type: image/png\r\nContent-Length: 1_0", b"", 400, "one number"),
        (
            "POST /predict",
            "Content-Type: image/png\r\nContent-Length: 1\r\nContent-Length: 2",
            b"xx",
            400,
            "one number",
        ),
        ("POST /predict", "Content-Length: 3", b"abc", 415, "text/plain is no kind of picture"),
        (
            "POST /predict",
            "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3",
            b"a=b",
            415,
            "send a PNG, JPEG",
        ),
        (
            "POST /predict",
            "Content-Type: image/svg+xml\r\nContent-Length: 6",
            b"<svg/>",
            415,
            "image/svg",
        ),
        (
            "POST /predict",
            "Content-Type: image/png\r\nContent-Length: 3",
            b"abc",
            422,
            "the picture cannot be read",
        ),
        (
            "POST /predict",
            "Content-Type: image/png\r\nContent-Length: 0",
            b"",
            422,
            "the picture cannot be read",
        ),
        ("FOO /predict", "", b"", 405, "/predict takes POST"),
        ("GET / HTTP/1.1 what", "", b"", 400, "no request"),
        ("GET /" + "x" * 70_000, "", b"", 414, "no request"),
        ("GET /", "X: " + "x" * 70_000, b"", 431, "no request"),
        ("GET /", "\r\n".join(f"X{i}: x" for i in range(200)), b"", 431, "no request"),
    ],
)
def test_what_is_refused(
    listening: server.Server,
    request_line: str,
    headers: str,
    body: bytes,
    status: int,
    said: str,
) -> None:
    lines = [f"{request_line} HTTP/1.1", f"Host: 127.0.0.1:{listening.server_address[1]}"]
    lines += [headers] * bool(headers)
    answer = send(listening, "\r\n".join([*lines, "", ""]).encode() + body)
    found, error = refusal(answer)
    assert found == status
    assert said in error
    assert (b"\r\nAllow: " in answer) == (status == 405)
    assert ask(listening, "GET", "/")[0] == 200  # it goes on


def test_a_blank_picture_and_a_bomb(listening: server.Server) -> None:
    for size, said in (((50, 50), "nothing that stands out"), ((9000, 9000), "at most 50 million")):
        content = io.BytesIO()
        Image.new("1", size).save(content, "PNG")
        answer = ask(listening, "POST", "/predict", content.getvalue(), Content_Type="image/png")
        assert answer[0] == 422
        assert said in json.loads(answer[2])["error"]


def test_the_largest_body_that_is_taken(listening: server.Server) -> None:
    body = b"x" * demo.LARGEST
    assert ask(listening, "POST", "/predict", body, Content_Type="image/png")[0] == 422


def test_the_refusal_of_a_large_body_arrives(listening: server.Server) -> None:
    body = b"x" * (demo.LARGEST + 1)
    status, _, content = ask(listening, "POST", "/predict", body, Content_Type="image/png")
    assert status == 413
    assert "at most 16 MiB" in json.loads(content)["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("localhost:9000", 200),  # forwarded by ssh
        ("evil.example:{port}", 421),
        ("127.0.0.1.evil.example", 421),
        ("10.0.0.1:{port}", 421),
        ("[::1]:{port}", 421),
        ("localhost@evil.example", 421),
        ("[", 400),
        ("", 400),
    ],
)
def test_only_its_own_names(listening: server.Server, host: str, status: int) -> None:
    port = listening.server_address[1]
    request = f"GET / HTTP/1.1\r\nHost: {host.format(port=port)}\r\n\r\n"
    answer = send(listening, request.encode())
    assert int(answer.split()[1]) == status
    if status != 200:
        refusal(answer)


def test_a_request_without_a_host_or_with_two(listening: server.Server) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        answer = send(listening, f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
        assert refusal(answer)[0] == 400


def test_other_pages_are_not_answered(listening: server.Server, png: bytes) -> None:
    own = f"http://127.0.0.1:{listening.server_address[1]}"
    for origin, status in (
        (own, 200),
        ("http://evil.example", 403),
        ("http://127.0.0.1:1", 403),
        ("null", 403),
    ):
        sent = ask(listening, "POST", "/predict", png, Content_Type="image/png", Origin=origin)
        assert sent[0] == status
        assert sent[1]["Access-Control-Allow-Origin"] is None


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
        answer = received(trickling)
    assert answer == b"" if status is None else refusal(answer)[0] == status


def test_half_a_picture(listening: server.Server) -> None:
    with connect(listening) as connection:
        connection.sendall(HALF)
        connection.shutdown(socket.SHUT_WR)
        assert refusal(received(connection))[0] == 400


def test_a_client_that_stays_is_left(
    offered: demo.Demo, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it sends after its answer is taken for a while, and gains no time either."""
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


def test_a_defect_is_one_line(
    offered: demo.Demo,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken(content: bytes) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(offered, "answer", broken)
    said: list[str] = []
    with serving(server.Server(offered, report=said.append)) as found:
        status, _, content = ask(found, "POST", "/predict", png, Content_Type="image/png")
    assert status == 500
    assert json.loads(content) == {"error": "the server failed: see its terminal"}
    assert said == ["a request failed: RuntimeError: broken"]
    assert capfd.readouterr() == ("", "")


def test_many_at_once(listening: server.Server, png: bytes) -> None:
    answers = []

    def one() -> None:
        answers.append(ask(listening, "POST", "/predict", png, Content_Type="image/png"))

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in answers] == [200] * 20
    assert len({content for _, _, content in answers}) == 1


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


def test_who_is_too_many_is_told(
    offered: demo.Demo, held_back: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is answered, one waits, and the third one is no longer reset."""
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
        answer = received(third)
        assert answer.startswith(b"HTTP/1.0 503 ")
        assert b"\r\nRetry-After: 1\r\n" in answer
        assert "too many" in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        go_on.release(2)
        for connection in (first, second):
            assert received(connection).endswith(b"here")
            connection.close()  # the server waits for that


def test_everywhere_means_by_any_address(offered: demo.Demo) -> None:
    with server.Server(offered, "0.0.0.0") as found:
        assert not found.is_local
        assert found.url == f"http://127.0.0.1:{found.server_address[1]}/"
        for name in ("127.0.0.1", "192.168.1.5", "localhost", socket.gethostname().lower()):
            assert found.is_own(name)
        assert not found.is_own("evil.example")


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_address_of_the_next_internet(offered: demo.Demo) -> None:
    try:
        listening = server.Server(offered, "::1")
    except UserError:
        pytest.skip("no IPv6 here")
    with serving(listening) as found:
        assert found.url == f"http://[::1]:{found.server_address[1]}/"
        assert ask(found, "GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("host", "port"), [("127.0.0.1", 65536), ("127.0.0.1", -1), ("192.0.2.1", 0), ("no.invalid", 0)]
)
def test_what_cannot_be_had(offered: demo.Demo, host: str, port: int) -> None:
    with pytest.raises(UserError, match=f"cannot listen on port {port} of {host} .*: give --host"):
        server.Server(offered, host, port)
