import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorflow_datasets.core.features import ClassLabel, Image

from jaxcnn.data import decoding, tfds
from jaxcnn.data.cache import Arrays
from jaxcnn.data.dataset import load_data
from jaxcnn.errors import DataError
from jaxcnn.recipes.problems import PROBLEMS
from tests.data.prepared import prepare_other
from tests.official import Official


def prepare(tmp_path: Path, name: str, official: Official) -> tfds.Prepared:
    return tfds.find_or_prepare(name, tmp_path / "data", official.folder)


def as_set(images: np.ndarray, labels: np.ndarray) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize("way", ["folder", "download"])
@pytest.mark.parametrize("name", ["mnist", "kmnist", "emnist/letters", "cifar100", "svhn_cropped"])
def test_prepare_and_decode(tmp_path: Path, name: str, official: Official, way: str) -> None:
    lines: list[str] = []
    archive_dir = official.folder if way == "folder" else None
    prepared = tfds.find_or_prepare(name, tmp_path / "data", archive_dir, lines.append)
    assert prepared.folder == tmp_path / "data" / name / tfds.VERSIONS[name]
    assert sum("downloading" in line for line in lines) == (
        0 if way == "folder" else len(official.archives)
    )
    decoded = decoding.decode_prepared(prepared, lines.append)
    version = tfds.VERSIONS[name]
    assert lines[-2:] == [
        f"preparing {name} {version} in {tmp_path / 'data'}, once",
        f"decoding {name} {version} from {prepared.folder}, once",
    ]
    assert len(decoded.class_names) == {"emnist/letters": 37, "cifar100": 100}.get(name, 10)
    for split, expected in official.splits.items():
        images, labels = decoded.arrays[f"{split}_images"], decoded.arrays[f"{split}_labels"]
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert len(images) == len(expected)
        assert as_set(images, labels) == as_set(expected.images, expected.labels)


def test_array_record_beside_tfrecord_is_read(
    tmp_path: Path, name: str, official: Official
) -> None:
    prepared = prepare(tmp_path, name, official)
    info = prepared.folder / "dataset_info.json"
    content = json.loads(info.read_text())
    content |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(content))
    again = prepare(tmp_path, name, official)
    assert len(decoding.decode_prepared(again).arrays["train_labels"]) == len(
        official.splits["train"]
    )


@pytest.mark.parametrize("damage", ["no-info", "half-info", "list-info", "cut-shard", "no-shard"])
def test_a_damaged_data_set_is_named(
    tmp_path: Path, name: str, official: Official, damage: str
) -> None:
    folder = prepare(tmp_path, name, official).folder
    shard = next(folder.glob("*train.array_record*"))
    if damage == "no-info":
        (folder / "dataset_info.json").unlink()
    elif damage == "half-info":
        (folder / "dataset_info.json").write_text("{")
    elif damage == "list-info":
        (folder / "dataset_info.json").write_text("[]")
    elif damage == "cut-shard":
        shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    else:
        shard.unlink()
    with pytest.raises(DataError, match=re.escape(str(folder))):
        decoding.decode_prepared(prepare(tmp_path, name, official))


@pytest.mark.parametrize("where", ["outside", "inside"])
@pytest.mark.parametrize("field", ["pythonClassName", "python_class_name", "type"])
def test_features_that_are_code_from_elsewhere_are_not_imported(
    where: str,
    field: str,
    tmp_path: Path,
    name: str,
    official: Official,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "canary_of_tfds.py").write_text("raise SystemExit('sings')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    prepared = prepare(tmp_path, name, official)
    path = prepared.folder / "features.json"
    content = json.loads(path.read_text())
    feature = content if where == "outside" else content["featuresDict"]["features"]["image"]
    feature.pop("pythonClassName")
    feature |= {field: "canary_of_tfds.Image", "content": {}}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"names canary_of_tfds.Image, not a feature of TFDS\)"):
        decoding.decode_prepared(prepared)


def test_images_of_another_shape_are_refused(
    tmp_path: Path, name: str, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(tmp_path, name, official)
    problem = dataclasses.replace(PROBLEMS[name], image_shape=(8, 8, 1))
    monkeypatch.setitem(PROBLEMS, name, problem)
    with pytest.raises(DataError, match=r"its images have the shape \((28|32), "):
        decoding.decode_prepared(prepared)


def test_data_that_is_not_official_is_refused(
    tmp_path: Path, name: str, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its description states: fewer images, other labels, other class names."""
    prepared = prepare(tmp_path, name, official)
    info = prepared.folder / "dataset_info.json"
    described = info.read_text()
    content = json.loads(described)
    train = next(split for split in content["splits"] if split["name"] == "train")
    lengths = [int(length) for length in train["shardLengths"]]
    train["shardLengths"] = [str(lengths[0] - 1), *map(str, lengths[1:])]
    info.write_text(json.dumps(content))
    size = len(official.splits["train"])
    with pytest.raises(DataError, match=f"it has {size - 1} train images, and {name} has {size}"):
        decoding.decode_prepared(prepared)
    info.write_text(described)
    test = official.splits["test"]
    other = (len(test), decoding.split_digest(test.images, test.labels ^ 1))
    with monkeypatch.context() as patch:
        patch.setitem(decoding.OFFICIAL, name, {**decoding.OFFICIAL[name], "test": other})
        with pytest.raises(DataError, match=f"its test images or labels are not those of {name}"):
            decoding.decode_prepared(prepared)
    if name == "cifar10":  # MNIST's names are in no file
        names = decoding.decode_prepared(prepared).class_names[::-1]
        (prepared.folder / "label.labels.txt").write_text("\n".join(names))
        with pytest.raises(DataError, match=f"its class names are {', '.join(names)}"):
            decoding.decode_prepared(prepared)


def test_a_digest_is_of_pairs_in_any_order() -> None:
    images = np.arange(24, dtype=np.uint8).reshape(3, 2, 2, 2)
    labels = np.array([0, 1, 255], np.int32)
    digest = decoding.split_digest(images, labels)
    assert len(digest) == 64
    assert decoding.split_digest(images[::-1], labels[::-1]) == digest
    assert decoding.split_digest(images, labels[::-1]) != digest
    assert decoding.split_digest(images[:2], labels[:2]) != digest
    assert decoding.split_digest(images ^ 1, labels) != digest


def test_tfds_is_quiet(
    tmp_path: Path,
    name: str,
    official: Official,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tensorflow_datasets

    bars: list[bool] = []
    monkeypatch.setattr(tensorflow_datasets, "enable_progress_bar", lambda: bars.append(True))
    with caplog.at_level(logging.INFO, logger="absl"):
        decoding.decode_prepared(prepare(tmp_path, name, official))
        assert logging.getLogger("absl").level == logging.INFO
    assert capfd.readouterr() == ("", "")
    assert bars == [True, True]  # as they were, after each of the two
    # What it logs at this level only, outside of the slow part.
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if not line.startswith("Load dataset info")] == []


@pytest.mark.slow
def test_real_mnist(tmp_path: Path, real_data: Path) -> None:
    prepared = tfds.find_or_prepare("mnist", tmp_path, real_data / "archives")
    decoded = decoding.decode_prepared(prepared).arrays
    assert decoded["train_images"].shape == (60000, 28, 28, 1)
    assert decoded["test_images"].shape == (10000, 28, 28, 1)
    assert np.bincount(decoded["train_labels"]).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert decoded["train_images"].mean() / 255 == pytest.approx(0.1307, abs=1e-4)
    assert decoded["train_images"].std() / 255 == pytest.approx(0.3081, abs=1e-4)
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_real_cifar10_that_stock_tfds_prepared(real_data: Path) -> None:
    prepared = tfds.find_or_prepare("cifar10", real_data / "tfds")
    decoded = decoding.decode_prepared(prepared)
    assert decoded.class_names[0] == "airplane"
    assert np.bincount(decoded.arrays["train_labels"]).tolist() == [5000] * 10
    assert np.bincount(decoded.arrays["test_labels"]).tolist() == [1000] * 10
    mean = decoded.arrays["train_images"].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=1e-4)
    assert isinstance(decoded, Arrays)


@pytest.mark.parametrize("name", ["mnist", "emnist/letters", "cifar10", "cifar100", "svhn_cropped"])
def test_stock_tfds_reads_what_was_prepared(tmp_path: Path, name: str, official: Official) -> None:
    import tensorflow_datasets

    prepared = prepare(tmp_path, name, official)
    builder = tensorflow_datasets.builder(
        f"{name}:{tfds.VERSIONS[name]}", data_dir=tmp_path / "data", file_format="array_record"
    )
    assert type(builder).__module__.startswith("tensorflow_datasets.")
    assert builder.is_prepared()
    source = builder.as_data_source("test")
    decoded = decoding.decode_prepared(prepared).arrays
    assert len(source) == len(official.splits["test"])
    for index in range(len(source)):
        image = source[index]["image"]
        image = image.swapaxes(0, 1) if name == "emnist/letters" else image
        np.testing.assert_array_equal(image, decoded["test_images"][index])
        assert source[index]["label"] == decoded["test_labels"][index]
        if name == "cifar100":
            assert source[index]["coarse_label"] == source[index]["label"] // 5
    if "id" in builder.info.features:
        digits = 6 if name == "svhn_cropped" else 5
        assert {example["id"] for example in source} == {
            f"test_{index:0{digits}d}".encode() for index in range(len(source))
        }


IMAGE, LABEL = Image(shape=(8, 12, 3)), ClassLabel(names=["dark", "light"])


def examples(count: int, shape: tuple[int, ...] = (8, 12, 3)) -> list[dict[str, Any]]:
    """Examples of two classes, dark and light."""
    return [
        {
            "picture": np.full(shape, 10 * index + 5 * (index % 2), np.uint8),
            "kind": index % 2,
        }
        for index in range(count)
    ]


def test_another_data_set_that_tfds_prepared(tmp_path: Path) -> None:
    """Its newest version; its features may have any names."""
    features = {"picture": IMAGE, "kind": LABEL}
    for version in ("9.0.0", "10.0.0"):
        count = int(version.partition(".")[0])
        prepare_other(
            tmp_path, {"train": examples(count), "test": examples(2)}, features, version=version
        )
    dataset = load_data("shades/small", data_dir=tmp_path)
    assert (dataset.name, dataset.version) == ("shades/small", "10.0.0")
    assert dataset.is_own
    assert dataset.class_names == ("dark", "light")
    assert dataset.train.images.shape == (10, 8, 12, 3)
    assert len(dataset.test) == 2
    values = dataset.train.images[:, 0, 0, 0]
    assert sorted(values) == [10 * index + 5 * (index % 2) for index in range(10)]
    assert (values % 10 // 5 == dataset.train.labels).all()


def test_a_share_is_held_out_where_there_are_no_test_images(tmp_path: Path) -> None:
    features = {"picture": IMAGE, "kind": LABEL}
    prepare_other(tmp_path, {"train": examples(20)}, features, config="")
    for share, count in ((0.1, 2), (0.3, 6)):
        dataset = load_data("shades", data_dir=tmp_path, hold_out=share)
        assert (len(dataset.train), len(dataset.test)) == (20 - count, count)
        assert np.bincount(dataset.test.labels).tolist() == [count // 2] * 2


def test_supervised_keys_tell_which_of_several_features(tmp_path: Path) -> None:
    features = {"picture": IMAGE, "mask": Image(shape=(None, None, 1)), "kind": LABEL}
    splits = {
        name: [example | {"mask": np.zeros((2, 2), np.uint8)} for example in examples(4)]
        for name in ("train", "test")
    }
    prepare_other(tmp_path, splits, features, config="several")
    with pytest.raises(
        DataError, match=r"shades/several/1\.0\.0 has the features .*mask.*, not one image and one "
    ):
        load_data("shades/several", data_dir=tmp_path)
    prepare_other(tmp_path, splits, features, config="told", keys=("picture", "kind"))
    dataset = load_data("shades/told", data_dir=tmp_path)
    assert dataset.image_shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"test": examples(2)}, "has no split train, but test: give --data another"),
        (
            {"train": [*examples(2), *examples(1, (9, 12, 3))], "test": examples(2)},
            r"split train, has the image uint8\[(8|9), 12, 3\] at position \d, not",
        ),
    ],
)
def test_data_of_another_kind(tmp_path: Path, splits: Any, said: str) -> None:
    features = {"picture": Image(shape=(None, None, 3)), "kind": LABEL}
    prepare_other(tmp_path, splits, features)
    with pytest.raises(DataError, match=said):
        load_data("shades/small", data_dir=tmp_path)


def test_only_array_record_can_be_read(tmp_path: Path) -> None:
    features = {"picture": IMAGE, "kind": LABEL}
    folder = prepare_other(tmp_path, {"train": examples(2), "test": examples(2)}, features)
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match=r"shades/small/1\.0\.0 is prepared as tfrecord"):
        load_data("shades/small", data_dir=tmp_path)
