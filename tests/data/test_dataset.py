from pathlib import Path

import numpy as np
import pytest

from jaxcnn.data import Dataset, load, synthetic
from jaxcnn.errors import DataError, DataUnavailableError
from tests.official import Official


@pytest.fixture
def small_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws 40 and 20 pictures only."""
    draw = synthetic.draw
    sizes = {"train": 40, "test": 20}
    monkeypatch.setattr(
        synthetic,
        "draw",
        lambda name, split, seed=0: draw(name, split, seed=seed, size=sizes[split]),
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
    dataset = load(name, archive_dir=official.folder)
    sizes = [len(official.splits[split]) for split in ("train", "test")]
    assert_contract(dataset, name, *sizes)
    assert (dataset.name, dataset.is_real, dataset.notice) == (name, True, "")
    lines: list[str] = []
    again = load(name, report=lines.append)  # warm: from the cache alone
    assert lines == []
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    assert isinstance(again.train.images, np.memmap)


def test_a_changed_data_set_is_decoded_again(tmp_path: Path, name: str, official: Official) -> None:
    load(name, data_dir=tmp_path / "d", archive_dir=official.folder)
    info = next((tmp_path / "d").glob("*/*/dataset_info.json"))
    info.write_text(info.read_text().replace("\n", "\n\n", 1))
    lines: list[str] = []
    load(name, data_dir=tmp_path / "d", report=lines.append)
    assert any("decoding" in line for line in lines)


@pytest.mark.usefixtures("small_stand_in")
def test_auto_takes_the_real_data_where_it_can_be_had(name: str, official: Official) -> None:
    assert load(name, source="auto", archive_dir=official.folder).name == name


@pytest.mark.usefixtures("small_stand_in")
def test_auto_falls_back_and_says_why(name: str, official: Official) -> None:
    missing = official.archives[0].filename
    (official.folder / missing).unlink()
    dataset = load(name, source="auto", archive_dir=official.folder)
    assert_contract(dataset, name, 40, 20)
    assert dataset.name == f"synthetic-{name}"
    assert not dataset.is_real
    assert missing in dataset.notice


def test_auto_does_not_paper_over_damage(name: str, official: Official) -> None:
    path = official.folder / official.archives[0].filename
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(DataError, match="wrong checksum"):
        load(name, source="auto", archive_dir=official.folder)


def test_real_never_falls_back(name: str, official: Official) -> None:
    (official.folder / official.archives[0].filename).unlink()
    with pytest.raises(DataUnavailableError):
        load(name, archive_dir=official.folder)


@pytest.mark.usefixtures("small_stand_in")
def test_synthetic_is_cached_by_seed(name: str, official: Official) -> None:
    first = load(name, source="synthetic", archive_dir=official.folder)
    assert first.name == f"synthetic-{name}"
    lines: list[str] = []
    load(name, source="synthetic", report=lines.append)
    assert lines == []
    other = load(name, source="synthetic", seed=1, report=lines.append)
    assert len(lines) == 1
    assert (other.train.images != first.train.images).any()


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="name must be one of mnist, cifar10, got 'x'"):
        load("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="source must be one of"):
        load("mnist", source="x")  # type: ignore[arg-type]
