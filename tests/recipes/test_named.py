import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcnn.recipes import named
from jaxcnn.recipes.named import RECIPES, load_recipe
from jaxcnn.recipes.recipe import recipe_from_dict
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"


@pytest.mark.parametrize(("network", "batch_size"), [("mnist", 64), ("cifar10", 4)])
def test_reference_is_the_original(network: str, batch_size: int) -> None:
    recipe = named.recipe(network, "reference")
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
        "clip": 0.0,
        "ema": 0.0,
        "label_smoothing": 0.0,
        "optimizer_args": {},
        "dropout": 0.5,
        "augment": "none",
        "initialization": "pytorch",
        "mean": (0.1307,),
        "std": (0.3081,),
    }
    assert {field: getattr(recipe, field) for field in expected} == expected


@pytest.mark.parametrize(
    ("network", "result", "name"),
    [
        ("mnist", "accuracy-mnist-best", "best"),
        ("mnist", "time-to-accuracy-mnist", "fast"),
        ("mnist", "sprint-mnist", "sprint"),
        ("cifar10", "accuracy-cifar10-best", "best"),
        ("cifar10", "time-to-accuracy-cifar10", "fast"),
        ("cifar10", "sprint-cifar10", "sprint"),
    ],
)
def test_the_recorded_results_are_of_the_recipes(network: str, result: str, name: str) -> None:
    recorded = json.loads((RESULTS / f"{result}.json").read_text())["recipe"]
    recorded.setdefault("recipe", recorded.get("name"))  # its name, as older files call it
    assert recipe_from_dict(recorded) == named.recipe(network, name)


def test_every_recipe_knows_its_name() -> None:
    for network, recipes in RECIPES.items():
        assert list(recipes) == ["reference", "fast", "best", "sprint"]
        for name, recipe in recipes.items():
            assert (recipe.network, recipe.name) == (network, name)


def test_unknown_names() -> None:
    with pytest.raises(
        ValueError, match="recipe takes reference, fast, best or sprint, got 'slow'"
    ):
        named.recipe("mnist", "slow")
    with pytest.raises(ValueError, match="network takes mnist or cifar10, got 'x'"):
        named.recipe("x", "fast")


def test_recipes_import_without_jax() -> None:
    code = "import sys, jaxcnn.recipes.named; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_changes_the_recipe_that_it_is_based_on(tmp_path: Path) -> None:
    text = 'base = "reference"\nepochs = 3\nmean = [0.5]\noptimizer = "adam"\n'
    path = write(tmp_path / "mine.toml", text + "[optimizer_args]\nb1 = 0.8\n")
    expected = named.recipe("cifar10", "reference").replace(
        optimizer="adam", epochs=3, mean=(0.5,), optimizer_args={"b1": 0.8}, name="mine"
    )
    assert load_recipe("cifar10", path) == expected
    assert load_recipe("mnist", write(tmp_path / "empty.toml", "")).epochs == (
        named.recipe("mnist", "fast").epochs
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs = 'many'", "epochs takes a whole number"),
        ("epochs = true", "epochs takes a whole number"),
        ("epoch = 3", r"a recipe has no 'epoch' .did you mean epochs"),
        ("learning_rate = '1'", "learning_rate takes a finite number"),
        ("learning_rate = inf", "learning_rate takes a finite number"),
        ("learning_rate = 1e300", "learning_rate takes a finite number"),
        ("optimizer = 5", "optimizer takes the name"),
        ("optimizer_args = 5", "optimizer_args takes values by their names"),
        ("mean = 0.5", "mean takes one finite number, or one for each channel, got 0.5"),
        ("std = [0]", "std takes one finite number, or one for each channel, above 0"),
        ("nesterov = 1", "nesterov takes true or false"),
        ("network = 'cifar10'", "is for the network 'cifar10'"),
        ("base = 'slow'", "recipe takes reference, fast, best or sprint"),
        ("base = 5", "recipe takes reference, fast, best or sprint"),
        ("epochs", "is no TOML file"),
        ("a = " + "[" * 5000, "is no TOML file"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "bad.toml", text)
    with pytest.raises(ValueError, match=said) as caught:
        load_recipe("mnist", path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be read"):
        load_recipe("mnist", tmp_path / "none.toml")


def test_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes("\ufeffepochs = 3\n".encode())
    assert load_recipe("mnist", path).epochs == 3


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.toml")
    with pytest.raises(ValueError, match="not a regular file"):
        load_recipe("mnist", tmp_path / "mine.toml")
