import base64
import dataclasses
import json
import zlib

import flax.linen as nn
import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.deploy import page_data
from jaxcnn.errors import UserError
from jaxcnn.report.analysis import Analysis
from jaxcnn.train.trained import Trained
from tests.stripes import striped_split


def test_images_of_the_whole_test_set(networks: dict[str, Trained], tiny_mnist: Dataset) -> None:
    data = json.loads(json.dumps(page_data.page_data(networks["mnist"], tiny_mnist)))
    assert data["classes"] == list("0123456789")
    assert data["facts"]["title"] == "MNIST"
    assert data["warnings"] == []
    test, confusion = data["images"]["test"], data["images"]["confusion"]
    assert test["sample"] == len(test["labels"]) == 70
    pixels = zlib.decompress(base64.b64decode(test["data"]))
    images = np.frombuffer(pixels, np.uint8).reshape(test["shape"])
    predictions = networks["mnist"].probabilities(images).argmax(-1)
    assert np.sum(confusion["counts"]) == 70
    found = set()
    for label, prediction, places in confusion["examples"]:
        assert len(places) == confusion["counts"][label][prediction]
        for place in places:
            assert (test["labels"][place], predictions[place]) == (label, prediction)
        found |= set(places)
    assert found == set(range(70))
    assert data["images"]["training"]["thumbnails"] == 300


def test_training_images_begin_with_the_thumbnails(
    networks: dict[str, Trained], tiny_mnist: Dataset
) -> None:
    few, all_ = (
        page_data.page_data(networks["mnist"], tiny_mnist, trainable)["images"]["training"]
        for trainable in (False, True)
    )
    assert (len(few["labels"]), len(all_["labels"])) == (300, 330)
    assert all_["labels"][:300] == few["labels"]


def test_without_images(networks: dict[str, Trained]) -> None:
    data = page_data.page_data(networks["mnist"], None)
    assert data["images"] is None
    assert data["warnings"] == ["The data set is not at hand, so this page has no images of it."]


def test_other_images_are_warned_of(networks: dict[str, Trained], tiny_mnist: Dataset) -> None:
    other = dataclasses.replace(tiny_mnist, test=striped_split((28, 28, 1), 20, seed=5))
    (warning,) = page_data.page_data(networks["mnist"], other)["warnings"]
    assert "not those of the data set" in warning


def test_a_synthetic_data_set_is_warned_of(networks: dict[str, Trained]) -> None:
    network = networks["mnist"]
    synthetic = dataclasses.replace(network, run={**network.run, "dataset": "synthetic-mnist"})
    warning, _ = page_data.page_data(synthetic, None)["warnings"]
    assert "a synthetic data set" in warning


def test_errors(networks: dict[str, Trained], tiny_mnist: Dataset) -> None:
    own = dataclasses.replace(networks["mnist"], model=nn.Dense(10))
    with pytest.raises(UserError, match="not Dense"):
        page_data.page_data(own, None)
    other = dataclasses.replace(tiny_mnist, class_names=tuple("abcdefghij"))
    with pytest.raises(UserError, match="the classes of mnist are not the network's"):
        page_data.page_data(networks["mnist"], other)
    split = striped_split((32, 32, 1), 10, seed=5)
    large = dataclasses.replace(tiny_mnist, train=split, test=split)
    with pytest.raises(UserError, match="the network takes"):
        page_data.page_data(networks["mnist"], large)


def test_large_images_are_fewer(
    networks: dict[str, Trained], tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_data, "_PIXELS", 30 * 28 * 28)
    images = page_data.page_data(networks["mnist"], tiny_mnist)["images"]
    assert images["test"]["shape"][0] == images["training"]["thumbnails"] == 30


def test_every_cell_gets_an_example_before_any_a_second() -> None:
    # Images of class 0: 6 predicted 0, 3 predicted 1, 1 predicted 2.
    predictions = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])
    analysis = Analysis(np.zeros(10, int), np.eye(3)[predictions])
    assert page_data._cells(analysis, [4, 5], room=3) == [
        (0, 0, [4, 5]),
        (0, 1, [6, 7]),
        (0, 2, [9]),
    ]
    assert page_data._cells(analysis, [4, 5], room=0) == [(0, 0, [4, 5])]


def test_a_sample_of_an_ordered_split_has_all_classes() -> None:
    images = np.zeros((1_000, 1, 1, 1), np.uint8)
    split = Split(images, np.repeat(np.arange(10), 100).astype(np.int32))
    sample = page_data._sample(split, 100)
    assert len(set(sample)) == 100
    assert set(split.labels[sample]) == set(range(10))
    assert page_data._sample(split, 10) == sample[:10]
