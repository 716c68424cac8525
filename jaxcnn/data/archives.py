"""The official archives of the data sets: found or downloaded, and verified."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxcnn.errors import DataError, DataUnavailableError, writing

if TYPE_CHECKING:
    import requests

# Seconds: for the name look-up and the response, for the connection alone, between two blocks.
_ANSWER_TIMEOUT = 12.0
_CONNECT_TIMEOUT = 10.0
_STALL_TIMEOUT = 12.0

_BLOCK = 2**20  # bytes that a download writes at once

_BY_HAND = " and name its folder with --archive-dir (or JAXCNN_ARCHIVE_DIR)"


@dataclass(frozen=True)
class Archive:
    """An official archive: its address and its checksum.

    Attributes:
        url: address of the file.
        size: length of the file in bytes.
        sha256: hexadecimal SHA-256 of the file.
    """

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The file's name, the last part of the address."""
        return self.url.rsplit("/", 1)[-1]


def gather_archives(
    archives: list[Archive],
    archive_dir: Path | None,
    destination: Path,
    report: Callable[[str], None],
    name: str = "",
) -> None:
    """Places every archive in `destination`, from `archive_dir` if it holds it, else by download.

    A folder in `archive_dir` with the data set's name comes first, because the archives of some
    data sets have the same file names. Every file's SHA-256 is verified.

    Args:
        archives: the archives to place.
        archive_dir: a folder of the user, which is only read; None to download all archives.
        destination: an empty folder, filled with links to the user's files and with downloads.
        report: called with a line of text before each download.
        name: of the data set.

    Raises:
        DataError: `archive_dir` does not exist, or a file has the wrong checksum or is unreadable.
        WriteError: `destination` cannot be written.
        DataUnavailableError: a file is not in `archive_dir` and cannot be downloaded.
    """
    if archive_dir is not None and not archive_dir.is_dir():
        raise DataError(
            f"the archive folder {archive_dir} does not exist: give --archive-dir (or "
            "JAXCNN_ARCHIVE_DIR) a folder that holds the official archives"
        )
    for archive in archives:
        path = destination / archive.filename
        places = [archive_dir / name, archive_dir] if archive_dir else []
        found = [place / archive.filename for place in places]
        local = next(filter(Path.is_file, found), None)
        if local:
            path.symlink_to(local.resolve())
            remedy = f"replace it with the file from {archive.url}"
            _verify(archive, local, f"{remedy}, or put that in {places[0]}" if name else remedy)
        else:
            report(f"downloading {archive.url} ({archive.size / 2**20:.1f} MiB)")
            _download(archive, path, archive_dir)
            _verify(archive, path, f"try again later, or download it elsewhere{_BY_HAND}")


def _verify(archive: Archive, path: Path, remedy: str) -> None:
    """Raises DataError, with the remedy, unless a file has the archive's SHA-256."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if digest != archive.sha256:
        raise DataError(
            f"{path} has the wrong checksum (SHA-256 {digest[:12]}..., expected "
            f"{archive.sha256[:12]}...): {remedy}"
        )


def _download(archive: Archive, path: Path, archive_dir: Path | None) -> None:
    """Downloads an archive, without verifying its checksum.

    Args:
        archive: the archive to download.
        path: the file to write.
        archive_dir: the user's folder, which lacks the archive; named in error messages.

    Raises:
        DataUnavailableError: the server cannot be reached or does not send the file.
        WriteError: `path` cannot be written.
    """
    # Imported here: only the first start without archives downloads anything.
    import requests

    missing = f"{archive.filename} is not in {archive_dir} and " if archive_dir else ""
    failure = f"{missing}{archive.url} cannot be downloaded"
    remedy = f"check the network, or download the file on another machine{_BY_HAND}"
    try:
        response = _open_url(archive.url)
    except Exception as error:  # requests lets some errors of its dependencies pass
        host = archive.url.split("/")[2]
        raise DataUnavailableError(f"{failure} (no answer from {host}): {remedy}") from error
    with response, writing(path, "give --data-dir a folder that can be written and has room"):
        if response.status_code != 200:
            raise DataUnavailableError(
                f"{failure} (the server answered {response.status_code}): {remedy}"
            )
        received = 0
        try:
            with path.open("wb") as file:
                for block in response.iter_content(_BLOCK):
                    received += len(block)
                    if received > archive.size:  # not the official file; do not fill the disk
                        break
                    file.write(block)
        except requests.RequestException as error:
            raise DataUnavailableError(
                f"{failure} (the connection broke off after {received} bytes): {remedy}"
            ) from error


def _open_url(url: str) -> "requests.Response":
    """Requests a file, and returns the response before its content is transferred.

    Raises:
        TimeoutError: there is no response within `_ANSWER_TIMEOUT` seconds.
        Exception: whatever requests raises, for example its ConnectionError.
    """
    import requests

    outcomes: list[requests.Response | Exception] = []

    def request() -> None:
        try:
            timeout = (_CONNECT_TIMEOUT, _STALL_TIMEOUT)
            outcomes.append(requests.get(url, stream=True, timeout=timeout))
        except Exception as error:
            outcomes.append(error)

    # In a daemon thread, which can be abandoned: the timeouts of a socket bound neither the name
    # look-up nor a host of many addresses.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(_ANSWER_TIMEOUT)
    outcome = outcomes[0] if outcomes else TimeoutError()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
