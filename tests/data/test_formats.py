import gzip
import io
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from jaxcnn.data import formats
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import DataError
from tests.official import cifar100_members, cifar_members, idx, write_svhn, write_tar


def test_idx_round_trip(tmp_path: Path) -> None:
    for array in (np.arange(7, dtype=np.uint8), np.arange(24, dtype=np.uint8).reshape(2, 3, 4)):
        path = tmp_path / "x.gz"
        path.write_bytes(gzip.compress(idx(array)))
        np.testing.assert_array_equal(formats.read_idx(path), array)


def test_an_idx_file_may_be_as_large_as_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx(np.zeros(7, np.uint8))))
    monkeypatch.setattr("jaxcnn.data.formats._IDX_LARGEST", 7)
    assert len(formats.read_idx(path)) == 7
    monkeypatch.setattr("jaxcnn.data.formats._IDX_LARGEST", 6)
    with pytest.raises(
        DataError, match=r"larger than any official IDX file \(its header states \(7,\)\): replace"
    ):
        formats.read_idx(path)


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
        formats.read_idx(path)


def splits(dataset: Dataset) -> dict[str, Split]:
    return {"train": dataset.train, "test": dataset.test}


@pytest.mark.parametrize("layout", [formats.CIFAR10, formats.CIFAR100])
def test_cifar_round_trip(
    tmp_path: Path, tiny_cifar10: Dataset, layout: formats.CifarLayout
) -> None:
    path = tmp_path / "c.tar.gz"
    is_100 = layout is formats.CIFAR100
    write_tar(path, (cifar100_members if is_100 else cifar_members)(splits(tiny_cifar10)))
    read = formats.read_cifar(path, layout)
    assert {label: len(names) for label, names in read.class_names.items()} == (
        {"coarse_label": 20, "label": 100} if is_100 else {"label": 10}
    )
    assert read.class_names["label"][:2] == (
        ("class 0", "class 1") if is_100 else tiny_cifar10.class_names[:2]
    )
    for split, expected in splits(tiny_cifar10).items():
        images, labels = (np.concatenate(parts) for parts in zip(*read.batches[split], strict=True))
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels[:, -1], expected.labels)
        np.testing.assert_array_equal(labels[:, 0], expected.labels // (5 if is_100 else 1))


def test_a_coarse_label_without_a_name(tmp_path: Path, tiny_cifar10: Dataset) -> None:
    members = cifar100_members(splits(tiny_cifar10))
    name = "cifar-100-binary/test.bin"
    members[name] = b"\x14" + members[name][1:]
    write_tar(tmp_path / "c.tar.gz", members)
    with pytest.raises(DataError, match=r"c\.tar\.gz: test\.bin has a label above 19"):
        formats.read_cifar(tmp_path / "c.tar.gz", formats.CIFAR100)


def test_idx_in_a_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in/x.gz", gzip.compress(idx(array)))
        archive.writestr("in/bad.gz", gzip.compress(idx(array))[:-12])
    np.testing.assert_array_equal(formats.read_idx(path, "in/x.gz"), array)
    with pytest.raises(DataError, match=r"x\.zip: in/bad\.gz is not a gzip-compressed IDX file"):
        formats.read_idx(path, "in/bad.gz")
    with pytest.raises(DataError, match=r"x\.zip is damaged or lacks in/no\.gz: replace it"):
        formats.read_idx(path, "in/no.gz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"x\.zip is damaged"):
        formats.read_idx(path, "in/x.gz")


def test_mat_round_trip(tmp_path: Path, tiny_cifar10: Dataset) -> None:
    write_svhn(tmp_path, splits(tiny_cifar10))
    for split, expected in splits(tiny_cifar10).items():
        images, labels = formats.read_mat(tmp_path / f"{split}_32x32.mat")
        np.testing.assert_array_equal(images, expected.images)
        np.testing.assert_array_equal(labels, expected.labels)


@pytest.mark.parametrize("fault", ["cut", "no-mat", "label", "shape", "lengths", "missing"])
def test_bad_mat_is_named(tmp_path: Path, tiny_cifar10: Dataset, fault: str) -> None:
    path = tmp_path / "bad.mat"
    images = np.moveaxis(tiny_cifar10.test.images, 0, -1)
    labels = tiny_cifar10.test.labels[:, None].astype(np.uint8) + 1
    arrays = {
        "label": {"X": images, "y": labels - labels.min()},
        "shape": {"X": images[:31], "y": labels},
        "lengths": {"X": images, "y": labels[1:]},
        "missing": {"X": images},
    }
    savemat(path, arrays.get(fault, {"X": images, "y": labels}))
    if fault == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif fault == "no-mat":
        path.write_bytes(b"nothing" * 100)
    with pytest.raises(DataError, match=re.escape(str(path))):
        formats.read_mat(path)


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
        formats.read_cifar(path)


def test_members_outside_the_official_folder_are_ignored(
    tmp_path: Path, tiny_cifar10: Dataset
) -> None:
    members = cifar_members(splits(tiny_cifar10))
    path = tmp_path / "c.tar.gz"
    write_tar(path, {"../../evil.bin": b"x", "/etc/test_batch.bin": b"x", **members})
    assert len(formats.read_cifar(path).batches["train"]) == 5
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
            formats.read_cifar(tmp_path / "linked.tar.gz")


def test_a_small_archive_that_unpacks_to_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.data.formats._CIFAR_LARGEST", 2**20)
    path = tmp_path / "bomb.tar.gz"
    write_tar(path, {"padding": bytes(20 * 2**20)})
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match="unpacks to more than the official archive"):
        formats.read_cifar(path)


def test_the_limits_are_those_of_the_official_files() -> None:
    layouts = [formats.CIFAR10, formats.CIFAR100]
    assert [one.most * one.record for one in layouts] == [30_730_000, 153_700_000]
    whole = max(6 * 30_730_000, 153_700_000 + 30_740_000)
    assert whole + 100_000 < formats._CIFAR_LARGEST < whole + 3_000_000
    assert formats._IDX_LARGEST == 547_178_688
