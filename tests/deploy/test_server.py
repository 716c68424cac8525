import io
import json
import socket

import pytest
from PIL import Image

from jaxcnn.deploy import demo, server
from jaxcnn.errors import UserError
from tests.serving import ask, refusal, send, serving


@pytest.fixture(scope="module")
def png() -> bytes:
    image = Image.new("L", (100, 100))
    image.paste(255, (45, 20, 55, 80))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


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


def test_a_prediction(listening: server.Server, png: bytes) -> None:
    status, headers, content = ask(listening, "POST", "/predict", png, Content_Type="image/png")
    assert status == 200
    assert headers["Content-Type"].startswith("application/json")
    assert json.loads(content) == json.loads(json.dumps(listening.demo.predict(png)))


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
            f"Content-Type: image/png\r\nContent-Length: {demo.MAX_FILE_BYTES + 1}",
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
        (
            "POST /predict",
            "Content-Length: 3",
            b"abc",
            415,
            "text/plain is not a supported image type",
        ),
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
            "the image cannot be read",
        ),
        (
            "POST /predict",
            "Content-Type: image/png\r\nContent-Length: 0",
            b"",
            422,
            "the image cannot be read",
        ),
        ("FOO /predict", "", b"", 405, "/predict takes POST"),
        ("GET / HTTP/1.1 what", "", b"", 400, "not a request"),
        ("GET /" + "x" * 70_000, "", b"", 414, "not a request"),
        ("GET /", "X: " + "x" * 70_000, b"", 431, "not a request"),
        ("GET /", "\r\n".join(f"X{i}: x" for i in range(200)), b"", 431, "not a request"),
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
    response = send(listening, "\r\n".join([*lines, "", ""]).encode() + body)
    found, error = refusal(response)
    assert found == status
    assert said in error
    assert (b"\r\nAllow: " in response) == (status == 405)
    assert ask(listening, "GET", "/")[0] == 200  # it goes on


def test_a_blank_image_and_a_bomb(listening: server.Server) -> None:
    for size, said in (((50, 50), "nothing that stands out"), ((9000, 9000), "at most 50 million")):
        content = io.BytesIO()
        Image.new("1", size).save(content, "PNG")
        response = ask(listening, "POST", "/predict", content.getvalue(), Content_Type="image/png")
        assert response[0] == 422
        assert said in json.loads(response[2])["error"]


def test_the_largest_body_that_is_taken(listening: server.Server) -> None:
    body = b"x" * demo.MAX_FILE_BYTES
    assert ask(listening, "POST", "/predict", body, Content_Type="image/png")[0] == 422


def test_the_refusal_of_a_large_body_arrives(listening: server.Server) -> None:
    body = b"x" * (demo.MAX_FILE_BYTES + 1)
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
    response = send(listening, request.encode())
    assert int(response.split()[1]) == status
    if status != 200:
        refusal(response)


def test_a_request_without_a_host_or_with_two(listening: server.Server) -> None:
    for hosts in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        response = send(listening, f"GET / HTTP/1.1\r\n{hosts}\r\n".encode())
        assert refusal(response)[0] == 400


def test_other_pages_are_refused(listening: server.Server, png: bytes) -> None:
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


def test_a_defect_is_one_line(
    offered: demo.Demo,
    png: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def broken(content: bytes) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(offered, "predict", broken)
    said: list[str] = []
    with serving(server.Server(offered, report=said.append)) as found:
        status, _, content = ask(found, "POST", "/predict", png, Content_Type="image/png")
    assert status == 500
    assert json.loads(content) == {"error": "the server failed: see its terminal"}
    assert said == ["a request failed: RuntimeError: broken"]
    assert capfd.readouterr() == ("", "")


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
