import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.data.dataset import Split
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.recipes import named
from jaxcnn.train.setup import check_recipe, check_sizes, make_model
from tests.train.test_fit import DATA, RECIPE, fit, sized


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(UserError, match="mnist has no training images"):
        fit(dataset=sized(DATA, 0, 64))
    with pytest.raises(UserError, match="mnist has no test images"):
        fit(dataset=sized(DATA, 320, 0))
    with pytest.raises(UserError, match="batch_size 321 is larger than the 320 training images"):
        fit(RECIPE.replace(batch_size=321))
    assert check_sizes(RECIPE.replace(batch_size=320), DATA) == 2
    assert check_sizes(RECIPE, DATA) == 14


def test_runs_that_are_too_long_to_be_counted() -> None:
    def total(epochs: int, size: int, batch_size: int) -> int:
        labels = np.broadcast_to(DATA.train.labels[:1], size)
        images = np.broadcast_to(DATA.train.images[:1], (size, 28, 28, 1))
        many = dataclasses.replace(DATA, train=Split(images, labels))
        recipe = RECIPE.replace(epochs=epochs, batch_size=batch_size)
        return check_sizes(recipe, many)

    most = 2**31 - 2
    said = "steps, more than the 2147483646 that can be counted"
    assert total(99_962, 21_483, 1) == most
    with pytest.raises(UserError, match=f"are {99_962 * 21_484} {said}"):
        total(99_962, 21_484, 1)
    with pytest.raises(UserError, match=f"are {most + 1} {said}"):
        total(1, most + 1, 1)
    assert total(1, most, 2**10) == 2**21
    with pytest.raises(UserError, match=said):
        total(1, most + 1, 2**10)


def test_make_model() -> None:
    for network, kind, parameters in (
        ("mnist", MnistCNN, 207_258),
        ("cifar10", Cifar10CNN, 554_890),
    ):
        recipe = named.recipe(network, "reference").replace(dropout=0.25)
        model = make_model(recipe)
        assert isinstance(model, kind)
        assert (model.dropout_rate, model.initialization) == (0.25, recipe.initialization)
        image = jax.ShapeDtypeStruct((1, *recipe.image_shape), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        assert count_parameters(variables["params"]) == parameters


def test_optimizers_that_cannot_train() -> None:
    check_recipe(RECIPE)
    asks = optax.GradientTransformationExtraArgs(
        lambda params: (), lambda updates, state, params=None, *, teacher: (updates, state)
    )
    with pytest.raises(UserError, match="teacher"):
        fit(tx=asks)
    with pytest.raises(UserError, match="frequency"):
        check_recipe(RECIPE.replace(optimizer="adam", optimizer_args={"frequency": 1}))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "1", None, np.float32(1), np.int64(-1)])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(UserError, match=r"the seed .*, at position 0, is not a whole number"):
        fit(seed=seed)


class Narrow(nn.Module):
    """A network of fewer classes, or one whose answer has another form."""

    classes: int = 9
    form: tuple[int, ...] = (-1,)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.classes)(images.reshape(len(images), -1))
        return x.reshape(len(images), *self.form)


@pytest.mark.parametrize("network", [Narrow(), Narrow(1), Narrow(10, (2, 5))])
def test_a_network_that_does_not_tell_the_classes_apart(network: nn.Module) -> None:
    with pytest.raises(
        UserError, match=r"Narrow returns \[1.*\] for one image: .*logits \[1, 10\]"
    ):
        fit(model=network)
