import hashlib
import socket
import threading
from pathlib import Path

import pytest

from jaxcnn.data import archives
from jaxcnn.errors import DataError, DataUnavailableError
from tests.official import archive


def ignore(line: str) -> None:
    pass


def test_an_archive_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gz").touch()
    wanted = archive("http://localhost", tmp_path / "a.gz")

    def fail(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"cannot read .*a\.gz: Permission denied"):
        archives.gather_archives([wanted], tmp_path, tmp_path / "out", ignore)


def test_gather_takes_the_folder_first_and_downloads_the_rest(
    tmp_path: Path, server: tuple[Path, str]
) -> None:
    folder, url = server
    for name in ("a.gz", "b.gz"):
        (folder / name).write_bytes(name.encode() * 1000)
    wanted = [archive(url, folder / name) for name in ("a.gz", "b.gz")]
    own = tmp_path / "own"
    own.mkdir()
    (folder / "a.gz").rename(own / "a.gz")
    destination = tmp_path / "destination"
    destination.mkdir()
    lines: list[str] = []
    archives.gather_archives(wanted, own, destination, lines.append)
    assert (destination / "a.gz").read_bytes() == b"a.gz" * 1000
    assert (destination / "b.gz").read_bytes() == b"b.gz" * 1000
    assert len(lines) == 1
    assert "b.gz" in lines[0]


def test_the_folder_of_a_data_set_comes_first(tmp_path: Path) -> None:
    """Several data sets have archives of the same name."""
    own = tmp_path / "own"
    (own / "kmnist").mkdir(parents=True)
    for folder in (own, own / "kmnist"):
        (folder / "a.gz").write_bytes(folder.name.encode())
    for name, held in (("kmnist", b"kmnist"), ("mnist", b"own")):
        place = own / name if name == "kmnist" else own
        wanted = [archive("http://localhost", place / "a.gz")]
        destination = tmp_path / name
        destination.mkdir()
        archives.gather_archives(wanted, own, destination, ignore, name)
        assert (destination / "a.gz").read_bytes() == held
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(
        DataError, match=r"a\.gz has the wrong checksum .*or put that in .*/fashion"
    ):
        archives.gather_archives(
            [archive("http://x", own / "kmnist" / "a.gz")], own, other, ignore, "fashion"
        )


@pytest.mark.parametrize("where", ["folder", "server"])
def test_wrong_checksum(tmp_path: Path, server: tuple[Path, str], where: str) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"valid")
    wanted = archive(url, folder / "a.gz")
    (folder / "a.gz").write_bytes(b"wrong")
    own = folder if where == "folder" else None
    with pytest.raises(DataError, match=r"a\.gz has the wrong checksum") as caught:
        archives.gather_archives([wanted], own, tmp_path, ignore)
    assert not isinstance(caught.value, DataUnavailableError)


def test_a_download_larger_than_the_archive_is_cut_off(
    tmp_path: Path, server: tuple[Path, str]
) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"valid")
    wanted = archive(url, folder / "a.gz")
    (folder / "a.gz").write_bytes(bytes(10 * 2**20))
    with pytest.raises(DataError, match="wrong checksum"):
        archives.gather_archives([wanted], None, tmp_path, ignore)
    assert (tmp_path / "a.gz").stat().st_size <= len(b"valid")


def test_absent_folder_is_an_error_even_where_a_download_would_do(
    tmp_path: Path, server: tuple[Path, str]
) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"valid")
    with pytest.raises(DataError, match="--archive-dir") as caught:
        archives.gather_archives([archive(url, folder / "a.gz")], tmp_path / "no", tmp_path, ignore)
    assert not isinstance(caught.value, DataUnavailableError)


@pytest.mark.parametrize("own", [True, False])
def test_missing_on_the_server(tmp_path: Path, server: tuple[Path, str], own: bool) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"valid")
    wanted = archive(url, folder / "a.gz")
    (folder / "a.gz").unlink()
    with pytest.raises(DataUnavailableError, match=r"a\.gz.*answered 404.*--archive-dir") as caught:
        archives.gather_archives([wanted], folder if own else None, tmp_path, ignore)
    assert (f"a.gz is not in {folder}" in str(caught.value)) == own


def test_refused_connection(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        # Held, so that nobody else listens there.
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.gz"
        with pytest.raises(DataUnavailableError, match=r"no answer from 127\.0\.0\.1"):
            archives.gather_archives([archives.Archive(url, 1, "0")], None, tmp_path, ignore)


def test_silent_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10 < archives._ANSWER_TIMEOUT < 15
    monkeypatch.setattr("jaxcnn.data.archives._ANSWER_TIMEOUT", 0.01)
    monkeypatch.setattr("jaxcnn.data.archives._STALL_TIMEOUT", 600.0)  # what would end it otherwise
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.gz"
        with pytest.raises(DataUnavailableError, match="no answer") as caught:
            archives.gather_archives([archives.Archive(url, 1, "0")], None, tmp_path, ignore)
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_broken_connection(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as request:
                while request.readline().strip():  # unread, it would reset the connection
                    pass
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/a.gz"
        with pytest.raises(DataUnavailableError, match="broke off"):
            archives.gather_archives([archives.Archive(url, 100, "0")], None, tmp_path, ignore)
        thread.join()
