import re

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.networks.inspect import multiply_adds, summary
from tests import original
from tests.networks.test_cnn import IDS, images, initial_variables, maps_of


@pytest.mark.parametrize(**IDS)
def test_summary(model: nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    text = summary(model, images(shape, 1))
    assert text.count(f"{parameters:,}") == 2  # the table's total and the closing line
    assert text.endswith(f"Parameters: {parameters:,}\n")
    assert "\x1b" not in text
    for layer in initial_variables(model)["params"]:
        assert re.search(rf"\b{layer}\b", text)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (MnistCNN(), (28, 28, 1), [(28, 28, 4), (14, 14, 8)]),
        (
            Cifar10CNN(),
            (32, 32, 3),
            [(32, 32, 4), (32, 32, 8), (32, 32, 16), (16, 16, 32), (8, 8, 64)],
        ),
    ],
    ids=["mnist", "cifar10"],
)
def test_feature_maps(
    model: nn.Module, shape: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    variables = initial_variables(model)
    maps = maps_of(model)(variables, images(shape))
    assert list(maps) == [f"conv{layer}" for layer in range(1, len(expected) + 1)]
    assert [value.shape[1:] for value in maps.values()] == expected
    assert not (maps["conv1"] < 0).any()  # after relu
    assert (maps["conv1"] > 0).any()


@pytest.mark.parametrize(("network", "millions"), [("mnist", "28.56"), ("cifar10", "289.00")])
def test_multiply_adds_at_batch_64(network: str, millions: str) -> None:
    images = jnp.zeros((64, *original.SHAPES[network]))
    count = multiply_adds(original.model(network), images)
    assert f"{count / 1e6:.2f}" == millions


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_multiply_adds_are_those_of_torchinfo(network: str) -> None:
    torchinfo = pytest.importorskip("torchinfo", reason="no torchinfo: pip install 'jaxcnn[torch]'")
    from benchmarks.pytorch_networks import NETWORKS as PEERS

    images = jnp.zeros((64, *original.SHAPES[network]))
    count = multiply_adds(original.model(network), images)
    size = (64, *np.roll(original.SHAPES[network], 1).tolist())
    printed = torchinfo.summary(PEERS[network](), size, verbose=0)
    assert count == printed.total_mult_adds
    parameters = {"mnist": 207_258, "cifar10": 554_890}[network]
    assert printed.total_params == parameters
    assert isinstance(original.model(network), nn.Module)
