import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxcnn.data import builders
from jaxcnn.data.tfds import VERSIONS
from tests.official import Official

every_name = pytest.mark.parametrize("name", VERSIONS)


def make(name: str, folder: Path) -> Any:
    base, _, config = name.partition("/")
    return builders.BUILDERS[base](config=config or None, data_dir=folder)


def stock_builder(name: str, folder: Path) -> Any:
    base, _, config = name.partition("/")
    return tfds.builder_cls(base)(config=config or None, data_dir=folder)


@every_name
def test_versions_and_features_are_those_of_the_stock_builders(tmp_path: Path, name: str) -> None:
    ours, stock = make(name, tmp_path), stock_builder(name, tmp_path)
    assert str(stock.version) == str(ours.version) == VERSIONS[name]
    assert repr(ours.info.features) == repr(stock.info.features)
    assert ours.info.features["label"].names == stock.info.features["label"].names
    assert ours.info.supervised_keys == stock.info.supervised_keys
    assert ours.info.full_name == stock.info.full_name == f"{name}/{VERSIONS[name]}"


def test_every_configuration_is_there(tmp_path: Path) -> None:
    """Of those data sets that are there at all."""
    names = set()
    for base, builder in builders.BUILDERS.items():
        names |= {f"{base}/{config}" for config in builder.builder_configs} or {base}
    assert names == set(VERSIONS)


@pytest.mark.parametrize("base", builders.BUILDERS)
def test_every_archive_has_a_registered_checksum(base: str) -> None:
    archives = builders.official_archives(base)
    count = {"cifar10": 1, "cifar100": 1, "emnist": 1, "svhn_cropped": 2}.get(base, 4)
    assert len(archives) == count
    for archive in archives:
        assert archive.url.startswith("http")
        assert len(archive.sha256) == 64
        assert archive.size > 1000
        assert tfds.builder_cls(base).url_infos[archive.url].filename == archive.filename


@every_name
def test_examples_are_those_of_the_archives(tmp_path: Path, name: str, official: Official) -> None:
    builder = make(name, tmp_path)
    manager = SimpleNamespace(download=lambda url: official.folder / url.rsplit("/", 1)[1])
    for split, examples in builder._split_generators(manager).items():
        expected = official.splits[split]
        found = list(examples)
        assert [key for key, _ in found] == list(range(len(expected)))
        for key, example in found:
            assert set(example) == set(builder.info.features)
            assert type(example["label"]) is int
            assert example["label"] == expected.labels[key]
            assert example.get("coarse_label", 0) == (
                expected.labels[key] // 5 if name == "cifar100" else 0
            )
            file = io.BytesIO(example["image"].read())  # as TFDS reads it
            image = np.asarray(Image.open(file, formats=["PNG"]))
            image = image.T if name.startswith("emnist/") else image
            np.testing.assert_array_equal(
                image.reshape(expected.images.shape[1:]), expected.images[key]
            )
            assert example.get("id", "") == {
                "cifar10": f"{split}_{key:05d}",
                "cifar100": f"{split}_{key:05d}",
                "svhn_cropped": f"{split}_{key:06d}",
            }.get(name, "")


@pytest.mark.parametrize("name", ["mnist"])
def test_every_image_needs_a_label(tmp_path: Path, official: Official) -> None:
    labels, images = (official.folder / url.rsplit("/", 1)[1] for url in builders.Mnist.urls[1:3])
    builder = builders.Mnist(data_dir=tmp_path)
    paths = [images, labels, images, labels]
    manager = SimpleNamespace(download=lambda url: paths[builders.Mnist.urls.index(url)])
    with pytest.raises(ValueError, match="longer"):
        list(builder._split_generators(manager)["train"])


@every_name
def test_the_stock_builders_stay_registered(name: str) -> None:
    base = name.partition("/")[0]
    stock = tfds.builder_cls(base)
    assert stock.__module__.startswith("tensorflow_datasets.")
    assert stock in builders.BUILDERS[base].__mro__
