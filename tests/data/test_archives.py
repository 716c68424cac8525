import gzip
import hashlib
import io
import re
import socket
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from jaxcnn.data import archives
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import DataError, DataUnavailableError
from tests.official import archive, cifar_members, idx, write_tar


def ignore(line: str) -> None:
    pass


def test_idx_round_trip(tmp_path: Path) -> None:
    for array in (np.arange(7, dtype=np.uint8), np.arange(24, dtype=np.uint8).reshape(2, 3, 4)):
        path = tmp_path / "x.gz"
        path.write_bytes(gzip.compress(idx(array)))
        np.testing.assert_array_equal(archives.read_idx(path), array)


def test_an_idx_file_may_be_as_large_as_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(7, np.uint8))))
    monkeypatch.setattr("jaxcnn.data.archives._IDX_LARGEST", 7)
    assert len(archives.read_idx(path)) == 7
    monkeypatch.setattr("jaxcnn.data.archives._IDX_LARGEST", 6)
    with pytest.raises(DataError, match=r"larger than any IDX file of MNIST: header says \(7,\)"):
        archives.read_idx(path)


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip at all",
        gzip.compress(b""),
        gzip.compress(idx(np.zeros(5, np.uint8))[:-1]),
        gzip.compress(idx(np.zeros(5, np.uint8)) + b"x"),
        gzip.compress(b"\x00\x00\x0d\x01" + bytes(4)),
        gzip.compress(b"\x00\x00\x08\x03" + b"\xff" * 12),
        gzip.compress(idx(np.zeros(500, np.uint8)))[:-12],
    ],
    ids=["not-gzip", "empty", "short", "long", "floats", "huge-header", "cut"],
)
def test_bad_idx_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        archives.read_idx(path)


def splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "test": dataset.test}


def test_cifar_round_trip(tmp_path: Path, tiny_cifar10: Dataset) -> None:
    path = tmp_path / "c.tar.gz"
    write_tar(path, cifar_members(splits(tiny_cifar10)))
    read = archives.read_cifar(path)
    assert read.class_names == tiny_cifar10.class_names
    for split, expected in splits(tiny_cifar10).items():
        images, labels = (np.concatenate(parts) for parts in zip(*read.batches[split], strict=True))
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)


@pytest.mark.parametrize("fault", ["missing", "ragged", "label", "large", "cut", "no-tar"])
def test_bad_cifar_is_named(tmp_path: Path, tiny_cifar10: Dataset, fault: str) -> None:
    members = cifar_members(splits(tiny_cifar10))
    batch = "cifar-10-batches-bin/data_batch_3.bin"
    if fault == "missing":
        del members[batch]
    elif fault == "ragged":
        members[batch] += b"x"
    elif fault == "label":
        members[batch] = b"\x0a" + members[batch][1:]
    elif fault == "large":
        members[batch] = bytes(10_001 * 3073)
    path = tmp_path / "c.tar.gz"
    write_tar(path, members)
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif fault == "no-tar":
        path.write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(DataError, match=re.escape(str(path))):
        archives.read_cifar(path)


def test_members_outside_the_official_folder_are_ignored(
    tmp_path: Path, tiny_cifar10: Dataset
) -> None:
    members = cifar_members(splits(tiny_cifar10))
    path = tmp_path / "c.tar.gz"
    write_tar(path, {"../../evil.bin": b"x", "/etc/test_batch.bin": b"x", **members})
    assert len(archives.read_cifar(path).batches["train"]) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.tar.gz"]


def test_links_are_not_followed(tmp_path: Path, tiny_cifar10: Dataset) -> None:
    path = tmp_path / "c.tar.gz"
    write_tar(path, cifar_members(splits(tiny_cifar10)))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        with tarfile.open(tmp_path / "linked.tar.gz", "w:gz") as archive:
            for name, content in cifar_members(splits(tiny_cifar10)).items():
                member = tarfile.TarInfo(name)
                if name.endswith("test_batch.bin"):
                    member.type, member.linkname = kind, "/etc/passwd"
                    content = b""
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        with pytest.raises(DataError, match="lacks a file"):
            archives.read_cifar(tmp_path / "linked.tar.gz")


def test_a_small_archive_that_unpacks_to_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.data.archives._CIFAR_LARGEST", 2**20)
    path = tmp_path / "bomb.tar.gz"
    write_tar(path, {"padding": bytes(20 * 2**20)})
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match="unpacks to more than the official archive"):
        archives.read_cifar(path)


def test_the_limits_are_those_of_the_official_files() -> None:
    assert archives._CIFAR_LARGEST_MEMBER == 30_730_000
    assert 6 * 30_730_000 + 100_000 < archives._CIFAR_LARGEST < 6 * 30_730_000 + 3_000_000
    assert archives._IDX_LARGEST == 47_040_000


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
        archives.gather([wanted], tmp_path, tmp_path / "out", ignore)


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
    archives.gather(wanted, own, destination, lines.append)
    assert (destination / "a.gz").read_bytes() == b"a.gz" * 1000
    assert (destination / "b.gz").read_bytes() == b"b.gz" * 1000
    assert len(lines) == 1
    assert "b.gz" in lines[0]


@pytest.mark.parametrize("where", ["folder", "server"])
def test_wrong_checksum(tmp_path: Path, server: tuple[Path, str], where: str) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"right")
    wanted = archive(url, folder / "a.gz")
    (folder / "a.gz").write_bytes(b"wrong")
    own = folder if where == "folder" else None
    with pytest.raises(DataError, match=r"a\.gz has the wrong checksum") as caught:
        archives.gather([wanted], own, tmp_path, ignore)
    assert not isinstance(caught.value, DataUnavailableError)


def test_a_download_larger_than_the_archive_is_cut_off(
    tmp_path: Path, server: tuple[Path, str]
) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"right")
    wanted = archive(url, folder / "a.gz")
    (folder / "a.gz").write_bytes(bytes(10 * 2**20))
    with pytest.raises(DataError, match="wrong checksum"):
        archives.gather([wanted], None, tmp_path, ignore)
    assert (tmp_path / "a.gz").stat().st_size <= len(b"right")


def test_absent_folder_is_an_error_even_where_a_download_would_do(
    tmp_path: Path, server: tuple[Path, str]
) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"right")
    with pytest.raises(DataError, match="--archive-dir") as caught:
        archives.gather([archive(url, folder / "a.gz")], tmp_path / "no", tmp_path, ignore)
    assert not isinstance(caught.value, DataUnavailableError)


@pytest.mark.parametrize("own", [True, False])
def test_missing_on_the_server(tmp_path: Path, server: tuple[Path, str], own: bool) -> None:
    folder, url = server
    (folder / "a.gz").write_bytes(b"right")
    wanted = archive(url, folder / "a.gz")
    (folder / "a.gz").unlink()
    with pytest.raises(DataUnavailableError, match=r"a\.gz.*answered 404.*--archive-dir") as caught:
        archives.gather([wanted], folder if own else None, tmp_path, ignore)
    assert (f"a.gz is not in {folder}" in str(caught.value)) == own


def test_refused_connection(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        # Held, so that nobody else listens there.
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.gz"
        with pytest.raises(DataUnavailableError, match=r"no answer from 127\.0\.0\.1"):
            archives.gather([archives.Archive(url, 1, "0")], None, tmp_path, ignore)


def test_silent_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 10 < archives._ANSWER_TIMEOUT < 15
    monkeypatch.setattr("jaxcnn.data.archives._ANSWER_TIMEOUT", 0.01)
    monkeypatch.setattr("jaxcnn.data.archives._STALL_TIMEOUT", 600.0)  # what would end it otherwise
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.gz"
        with pytest.raises(DataUnavailableError, match="no answer") as caught:
            archives.gather([archives.Archive(url, 1, "0")], None, tmp_path, ignore)
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
            archives.gather([archives.Archive(url, 100, "0")], None, tmp_path, ignore)
        thread.join()
