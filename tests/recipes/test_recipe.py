import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.named import RECIPES
from jaxcnn.recipes.recipe import recipe_from_dict


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
        ("label_smoothing", 1.0),
        ("augment", "mixup"),
        ("mean", ()),
        ("std", (0.0,)),
    ],
)
def test_a_bad_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field} takes .*, got ") as caught:
        dataclasses.replace(named.recipe("cifar10", "fast"), **{field: value})
    assert "\n" not in str(caught.value)


@given(st.integers(), st.floats(), st.floats())
def test_any_number_is_taken_or_named(epochs: int, learning_rate: float, dropout: float) -> None:
    try:
        recipe = named.recipe("mnist", "fast").replace(
            epochs=epochs, learning_rate=learning_rate, dropout=dropout
        )
    except ValueError as error:
        assert str(error).split()[0] in ("epochs", "learning_rate", "dropout")
    else:
        assert recipe.epochs >= 1
        assert recipe.learning_rate > 0
        assert 0 <= recipe.dropout < 1


def test_another_optimizer_brings_its_learning_rate_unless_one_is_given() -> None:
    fast = named.recipe("cifar10", "fast")
    swapped = fast.replace(optimizer="lion")
    assert swapped.learning_rate == optimizer_defaults.get("lion").learning_rate
    assert fast.replace(optimizer="lion", learning_rate=0.25).learning_rate == 0.25
    assert fast.replace(optimizer=fast.optimizer) == fast


def test_a_recipe_comes_back_from_json() -> None:
    for recipes in RECIPES.values():
        for recipe in recipes.values():
            assert recipe_from_dict(json.loads(json.dumps(recipe.asdict()))) == recipe
    fields = named.recipe("mnist", "fast").asdict()
    del fields["clip"]
    with pytest.raises(ValueError, match="clip is missing"):
        recipe_from_dict(fields)


def test_numpy_s_numbers_are_numbers() -> None:
    recipe = named.recipe("mnist", "fast").replace(
        epochs=np.int64(3),
        batch_size=np.uint16(50),
        learning_rate=np.float32(0.5),
        dropout=np.int8(0),
    )
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (3, 50, 0.5)
    json.dumps(recipe.asdict())
    assert named.recipe("mnist", "fast").replace(learning_rate=np.float64(0.5)).learning_rate == 0.5


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="epoch is no field of a recipe: did you mean epochs"):
        named.recipe("mnist", "fast").replace(epoch=2)
    with pytest.raises(ValueError, match="xyz is no field of a recipe: there are name, network,"):
        named.recipe("mnist", "fast").replace(xyz=2)
