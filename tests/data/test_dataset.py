from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data import synthetic
from jaxcnn.data.dataset import Dataset, Split, load_data
from jaxcnn.errors import DataError, DataUnavailableError
from tests.official import Official


@pytest.fixture
def small_synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generates 40 training and 20 test images only."""
    generate = synthetic.generate_split
    sizes = {"train": 40, "test": 20}
    monkeypatch.setattr(
        "jaxcnn.data.synthetic.generate_split",
        lambda name, split, seed=0: generate(name, split, seed=seed, size=sizes[split]),
    )


def assert_contract(dataset: Dataset, name: str, train: int, test: int) -> None:
    shape = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[name]
    for split, size in ((dataset.train, train), (dataset.test, test)):
        assert split.images.shape == (size, *shape)
        assert split.images.dtype == np.uint8
        assert split.labels.shape == (size,)
        assert split.labels.dtype == np.int32
        assert len(split) == size
        assert set(np.unique(split.labels)) <= set(range(10))
    assert len(dataset.class_names) == 10


def test_real(name: str, official: Official) -> None:
    dataset = load_data(name, archive_dir=official.folder)
    sizes = [len(official.splits[split]) for split in ("train", "test")]
    assert_contract(dataset, name, *sizes)
    assert (dataset.name, dataset.is_real, dataset.notice) == (name, True, "")
    lines: list[str] = []
    again = load_data(name, report=lines.append)  # warm: from the cache alone
    assert lines == []
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    assert isinstance(again.train.images, np.memmap)


def test_a_changed_data_set_is_decoded_again(tmp_path: Path, name: str, official: Official) -> None:
    load_data(name, data_dir=tmp_path / "d", archive_dir=official.folder)
    info = next((tmp_path / "d").glob("*/*/dataset_info.json"))
    info.write_text(info.read_text().replace("\n", "\n\n", 1))
    lines: list[str] = []
    load_data(name, data_dir=tmp_path / "d", report=lines.append)
    assert any("decoding" in line for line in lines)


@pytest.mark.usefixtures("small_synthetic")
def test_auto_takes_the_real_data_where_it_is_available(name: str, official: Official) -> None:
    assert load_data(name, source="auto", archive_dir=official.folder).name == name


@pytest.mark.usefixtures("small_synthetic")
def test_auto_falls_back_and_states_why(name: str, official: Official) -> None:
    missing = official.archives[0].filename
    (official.folder / missing).unlink()
    dataset = load_data(name, source="auto", archive_dir=official.folder)
    assert_contract(dataset, name, 40, 20)
    assert dataset.name == f"synthetic-{name}"
    assert not dataset.is_real
    assert missing in dataset.notice


def test_auto_does_not_hide_damage(name: str, official: Official) -> None:
    path = official.folder / official.archives[0].filename
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(DataError, match="wrong checksum"):
        load_data(name, source="auto", archive_dir=official.folder)


def test_real_never_falls_back(name: str, official: Official) -> None:
    (official.folder / official.archives[0].filename).unlink()
    with pytest.raises(DataUnavailableError):
        load_data(name, archive_dir=official.folder)


@pytest.mark.usefixtures("small_synthetic")
def test_synthetic_is_cached_by_seed(name: str, official: Official) -> None:
    lines: list[str] = []
    first = load_data(name, source="synthetic", archive_dir=official.folder, report=lines.append)
    assert lines == [f"generating the synthetic data set for {name}, once"]
    assert first.name == f"synthetic-{name}"
    assert first.notice == "the synthetic data set was requested"
    lines.clear()
    load_data(name, source="synthetic", report=lines.append)
    assert lines == []
    other = load_data(name, source="synthetic", seed=1, report=lines.append)
    assert len(lines) == 1
    assert (other.train.images != first.train.images).any()


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match=r"no data set x: give one of mnist, .*, svhn_cropped, or"):
        load_data("x")
    with pytest.raises(DataError, match="there is no synthetic data set of the form of kmnist"):
        load_data("kmnist", source="auto")
    with pytest.raises(ValueError, match="source must be one of"):
        load_data("mnist", source="x")  # type: ignore[arg-type]


IMAGES = np.arange(6 * 28 * 28, dtype=np.uint64).reshape(6, 28, 28, 1).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9], np.int32)


TEN = tuple("0123456789")


def made(images: Any = IMAGES, labels: Any = LABELS, names: tuple[str, ...] = ()) -> Dataset:
    """Makes a data set of given training arrays, with others to test on."""
    return Dataset("mnist", "mine", Split(images, labels), Split(IMAGES, LABELS), names)


@pytest.mark.parametrize("kind", np.typecodes["AllInteger"])
def test_integers_of_any_type(kind: str) -> None:
    images = np.minimum(IMAGES, 127)
    dataset = made(images.astype(kind), LABELS.astype(kind))
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    np.testing.assert_array_equal(dataset.train.images, images)
    np.testing.assert_array_equal(dataset.train.labels, LABELS)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGES[..., 0], LABELS),
        (IMAGES, LABELS[:, None]),
        (IMAGES, LABELS.tolist()),
        (IMAGES.tolist(), tuple(LABELS)),
        (jnp.asarray(IMAGES), jnp.asarray(LABELS)),
    ],
    ids=["no channel", "column", "list", "lists", "jax"],
)
def test_unambiguous_arrays_are_converted(images: Any, labels: Any) -> None:
    dataset = made(images, labels)
    np.testing.assert_array_equal(dataset.train.images, IMAGES)
    np.testing.assert_array_equal(dataset.train.labels, LABELS)
    assert isinstance(dataset.train.labels, np.ndarray)


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (
            IMAGES / 255,
            LABELS,
            r"training split are float64\[6, 28, 28, 1\] up to 1\.0: give integers",
        ),
        (IMAGES.astype(np.float32), LABELS, r"float32.* up to 255\.0.*255 \* images"),
        (IMAGES > 9, LABELS, r"training split are bool\[6, 28, 28, 1\]"),
        (IMAGES.astype(np.int64) - 1, LABELS, r"int64.*, -1 to 254: give values from 0 to 255"),
        (IMAGES.astype(np.int64) + 1, LABELS, r"int64.*, 1 to 256: give values from 0 to 255"),
        (np.moveaxis(IMAGES, 3, 1), LABELS, r"\[6, 1, 28, 28\]: the channels come last"),
        (IMAGES.reshape(6, -1), LABELS, r"uint8\[6, 784\]: give them as \[N, H, W, C\]"),
        (IMAGES[:5], LABELS, r"the training split has 5 images and 6 labels: give one label"),
        (IMAGES, LABELS[:5], r"the training split has 6 images and 5 labels"),
        (
            IMAGES,
            LABELS + 1,
            r"the training split has the label 10 at position 5: give labels from",
        ),
        (
            IMAGES,
            LABELS - 2,
            r"the training split has the label -1 at position 1: give labels from",
        ),
        (IMAGES, np.arange(6, dtype=np.uint8) + 250, r"has the label 250 at position 0"),
        (IMAGES, np.eye(10)[LABELS], r"float64\[6, 10\]: .* labels\.argmax\(-1\)"),
        (IMAGES, np.eye(10, dtype=int)[LABELS], r"int64\[6, 10\]: .* labels\.argmax\(-1\)"),
        (IMAGES, LABELS + 0.0, r"the labels of the training split are float64\[6\], the first .*3"),
        (IMAGES, LABELS > 3, r"bool\[6\]"),
        (IMAGES, list("314159"), r"<U1\[6\], the first .*'3'.*: give integers"),
        (IMAGES, np.int32(3), r"int32\[\]: give one number for each image"),
        (IMAGES[:, :20], LABELS, r"\[6, 20, 28, 1\] and \[6, 28, 28, 1\]: give them the same"),
    ],
)
def test_invalid_arrays(images: Any, labels: Any, said: str) -> None:
    """They are refused where the data set is made, with the split, shape, dtype and value."""
    with pytest.raises(DataError, match=said):
        made(images, labels, TEN)


def test_the_test_split_as_well() -> None:
    split = Split(IMAGES, LABELS)
    with pytest.raises(DataError, match=r"the test split has the label 10 at position 5"):
        Dataset("mnist", "mine", split, Split(IMAGES, LABELS + 1), TEN)
    with pytest.raises(DataError, match=r"the images of the test split are float32"):
        Dataset("mnist", "mine", split, Split(IMAGES.astype(np.float32), LABELS), ())


def test_classes() -> None:
    """Their names decide how many there are, or else the training labels."""
    twelve = made(labels=LABELS + 2, names=tuple("abcdefghijkl"))
    assert (twelve.classes, twelve.class_names) == (12, tuple("abcdefghijkl"))
    assert made().class_names == tuple("0123456789")
    assert made(labels=LABELS + 2).class_names == tuple(map(str, range(12)))
    assert made().image_shape == (28, 28, 1)
    with pytest.raises(DataError, match=r"label 3 at position 0: .* from 0 to 2, or more class"):
        made(names=("a", "b", "c"))
    with pytest.raises(DataError, match=r"the test split has the label 9 at position 5: .* to 5,"):
        made(labels=LABELS // 2 + 1)
    with pytest.raises(DataError, match=r"the label 10000 at position 1: .* from 0 to 9999,"):
        made(labels=np.array([0, 10_000, 0, 0, 0, 0]))
    with pytest.raises(DataError, match="there are 10001 class names: give at most 10000"):
        made(names=tuple(map(str, range(10_001))))


def test_a_data_set_is_printed_in_one_line() -> None:
    split = Split(IMAGES, LABELS)
    assert repr(split) == f"Split(images=uint8{list(IMAGES.shape)})"
    assert "\n" not in repr(made())
