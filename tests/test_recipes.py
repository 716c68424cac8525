import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import catalog, recipes


@pytest.mark.parametrize(("network", "batch_size"), [("mnist", 64), ("cifar10", 4)])
def test_reference_is_the_original(network: str, batch_size: int) -> None:
    recipe = recipes.get(network, "reference")
    expected = {
        "epochs": 20,
        "batch_size": batch_size,
        "optimizer": "sgd",
        "learning_rate": 0.001,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
        "dropout": 0.5,
        "augment": "none",
        "initialization": "pytorch",
        "mean": (0.1307,),
        "std": (0.3081,),
    }
    assert {field: getattr(recipe, field) for field in expected} == expected


def test_every_recipe_knows_its_name() -> None:
    for network, named in recipes.RECIPES.items():
        assert list(named) == ["reference", "fast", "best"]
        for name, recipe in named.items():
            assert (recipe.network, recipe.name) == (network, name)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "imagenet"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", -1),
        ("batch_size", 10**7),
        ("optimizer", "sdg"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay", -1e-9),
        ("momentum", 1.0),
        ("schedule", "step"),
        ("warmup", 1.0),
        ("dropout", -0.1),
        ("augment", "mixup"),
        ("mean", (0.1, 0.2)),
        ("std", (0.0,)),
    ],
)
def test_a_bad_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} takes .*, got ") as caught:
        dataclasses.replace(recipes.get("cifar10", "fast"), **{field: value})
    assert "\n" not in str(caught.value)


@given(st.integers(), st.floats(), st.floats())
def test_any_number_is_taken_or_named(epochs: int, learning_rate: float, dropout: float) -> None:
    try:
        recipe = recipes.get("mnist", "fast").replace(
            epochs=epochs, learning_rate=learning_rate, dropout=dropout
        )
    except ValueError as error:
        assert str(error).split()[0] in ("epochs", "learning_rate", "dropout")
    else:
        assert recipe.epochs >= 1
        assert recipe.learning_rate > 0
        assert 0 <= recipe.dropout < 1


def test_another_optimizer_brings_its_learning_rate_unless_one_is_given() -> None:
    fast = recipes.get("cifar10", "fast")
    swapped = fast.replace(optimizer="lion")
    assert swapped.learning_rate == catalog.get("lion").learning_rate
    assert fast.replace(optimizer="lion", learning_rate=0.25).learning_rate == 0.25
    assert fast.replace(optimizer=fast.optimizer) == fast


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="recipe takes reference, fast or best, got 'slow'"):
        recipes.get("mnist", "slow")
    with pytest.raises(ValueError, match="network takes mnist or cifar10, got 'x'"):
        recipes.get("x", "fast")


def test_recipes_import_without_jax() -> None:
    code = "import sys, jaxcnn.recipes; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
