from typing import get_args

import pytest

from jaxcnn.recipes import named
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.recipes.recipe import NetworkName
from tests.official import CIFAR_NAMES


def test_every_network_has_a_problem() -> None:
    assert tuple(PROBLEMS) == get_args(NetworkName)
    for name, problem in PROBLEMS.items():
        assert problem.name == name
        assert len(problem.class_names) == len(set(problem.class_names)) == 10
        assert len(problem.mean) == len(problem.std) == problem.image_shape[-1]


@pytest.mark.parametrize(
    ("network", "title", "shape", "names"),
    [
        ("mnist", "MNIST", (28, 28, 1), tuple("0123456789")),
        ("cifar10", "CIFAR-10", (32, 32, 3), CIFAR_NAMES),
    ],
)
def test_a_recipe_knows_its_problem(
    network: str, title: str, shape: tuple[int, ...], names: tuple[str, ...]
) -> None:
    recipe = named.recipe(network, "fast")
    assert recipe.problem is PROBLEMS[network]
    assert (recipe.title, recipe.image_shape, recipe.class_names) == (title, shape, names)
