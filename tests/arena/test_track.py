import numpy as np
import pytest

from jaxcnn.arena.track import TRACKS, VARIANTS, find_track, with_label_noise
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError


def test_names_say_data_network_and_budget() -> None:
    found = {
        name: (track.dataset, track.recipe.network, track.recipe.epochs)
        for name in TRACKS
        for track in [find_track(name)]
    }
    assert found["mnist-sprint"] == ("mnist", "mnist", 1)
    assert found["fashion_mnist"] == ("fashion_mnist", "mnist", 5)
    assert found["synthetic-cifar10-sprint"] == ("synthetic-cifar10", "cifar10", 2)
    assert found["cifar10"] == ("cifar10", "cifar10", 10)


def test_a_variant_differs_in_one_thing() -> None:
    standard = find_track("mnist-sprint")
    for name, field, value in (
        ("half-batch", "batch_size", 32),
        ("large-batch", "batch_size", 256),
        ("no-dropout", "dropout", 0.0),
        ("initialization", "initialization", "flax"),
        ("augmentation", "augment", "shift"),
    ):
        variant = find_track("mnist-sprint", name)
        assert variant.recipe == standard.recipe.replace(**{field: value})
        assert variant.recipe != standard.recipe
        assert variant.title == f"mnist-sprint-{name}"
        assert not variant.label_noise
    assert find_track("mnist", "label-noise").label_noise == 0.1
    constant = find_track("cifar10", "constant-rate").recipe
    assert constant == find_track("cifar10").recipe.replace(schedule="constant", warmup=0)
    assert find_track("cifar10", "augmentation").recipe.augment == "flip-shift"
    assert len(VARIANTS) == 8


def test_an_optimizer_brings_its_defaults() -> None:
    track = find_track("mnist")
    sgd, lion, free = map(track.for_optimizer, ("sgd", "lion", "schedule_free"))
    assert (sgd.learning_rate, sgd.nesterov, sgd.momentum) == (0.05, True, 0.9)
    assert (lion.learning_rate, lion.weight_decay, lion.nesterov) == (2e-4, 0.1, False)
    assert (lion.schedule, free.schedule, free.warmup) == ("linear", "constant", 0)


@pytest.mark.parametrize(
    ("name", "variant", "said"),
    [("imagenet", "standard", "TRACK takes"), ("mnist", "upside-down", "--variants takes")],
)
def test_an_unknown_name_is_an_error(name: str, variant: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        find_track(name, variant)


def test_label_noise_is_the_same_every_time(tiny_mnist: Dataset) -> None:
    noisy = with_label_noise(tiny_mnist, 0.1)
    differs = noisy.train.labels != tiny_mnist.train.labels
    assert 20 <= differs.sum() <= 33  # a tenth of the drawn ones happen to be right
    assert (noisy.train.labels == with_label_noise(tiny_mnist, 0.1).train.labels).all()
    assert (noisy.test.labels == tiny_mnist.test.labels).all()
    assert with_label_noise(tiny_mnist, 0.0) is tiny_mnist


def test_a_data_set_brings_its_normalization(tiny_mnist: Dataset) -> None:
    other = Dataset("stripes", "1", tiny_mnist.train, tiny_mnist.test, ())
    track, prepared = find_track("fashion_mnist").prepare(other)
    assert np.allclose((track.recipe.mean, track.recipe.std), other.moments())
    assert prepared is other
