import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from jaxcnn.data import builders
from jaxcnn.data.tfds import VERSIONS
from jaxcnn.recipes.problems import PROBLEMS
from tests.official import Official

STOCK = {"mnist": mnist.MNIST, "cifar10": cifar.Cifar10}


def test_versions_and_features_are_those_of_the_stock_builders(tmp_path: Path, name: str) -> None:
    ours = builders.BUILDERS[name](data_dir=tmp_path)
    stock = STOCK[name](data_dir=tmp_path)
    assert str(stock.version) == str(ours.version) == VERSIONS[name]
    assert stock.info.features["image"].shape == PROBLEMS[name].image_shape
    assert repr(ours.info.features) == repr(stock.info.features)
    assert ours.info.full_name == stock.info.full_name


def test_every_archive_has_a_registered_checksum(name: str) -> None:
    archives = builders.official_archives(name)
    assert len(archives) == {"mnist": 4, "cifar10": 1}[name]
    for archive in archives:
        assert archive.url.startswith("https://")
        assert len(archive.sha256) == 64
        assert archive.size > 1000
        assert STOCK[name].url_infos[archive.url].filename == archive.filename


def test_examples_are_those_of_the_archives(tmp_path: Path, name: str, official: Official) -> None:
    builder = builders.BUILDERS[name](data_dir=tmp_path)
    manager = SimpleNamespace(download=lambda url: official.folder / url.rsplit("/", 1)[1])
    for split, examples in builder._split_generators(manager).items():
        expected = official.splits[split]
        found = list(examples)
        assert [key for key, _ in found] == list(range(len(expected)))
        for key, example in found:
            assert type(example["label"]) is int
            assert example["label"] == expected.labels[key]
            file = io.BytesIO(example["image"].read())  # as TFDS reads it
            image = np.asarray(Image.open(file, formats=["PNG"]))
            np.testing.assert_array_equal(
                image.reshape(PROBLEMS[name].image_shape), expected.images[key]
            )
            assert example.get("id") == (f"{split}_{key:05d}" if name == "cifar10" else None)


@pytest.mark.parametrize("name", ["mnist"])
def test_every_image_needs_a_label(tmp_path: Path, official: Official) -> None:
    train_labels, test_images = (
        official.folder / url.rsplit("/", 1)[1] for url in builders.Mnist.urls[1:3]
    )
    builder = builders.Mnist(data_dir=tmp_path)
    examples = builder._generate_examples(test_images, train_labels)
    with pytest.raises(ValueError, match="longer"):
        list(examples)


def test_the_stock_builders_stay_registered(name: str) -> None:
    assert tfds.builder_cls(name) is STOCK[name]
