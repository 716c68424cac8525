from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.image_classification import cifar, mnist

from jaxcnn.data import builders
from jaxcnn.data.tfds import IMAGE_SHAPES, VERSIONS

STOCK = {"mnist": mnist.MNIST, "cifar10": cifar.Cifar10}


def test_versions_and_features_are_those_of_the_stock_builders(tmp_path: Path, name: str) -> None:
    ours = builders.BUILDERS[name](data_dir=tmp_path)
    stock = STOCK[name](data_dir=tmp_path)
    assert str(stock.version) == str(ours.version) == VERSIONS[name]
    assert stock.info.features["image"].shape == IMAGE_SHAPES[name]
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


def test_the_stock_builders_stay_registered(name: str) -> None:
    assert tfds.builder_cls(name) is STOCK[name]
