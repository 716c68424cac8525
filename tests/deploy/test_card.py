import dataclasses
import re
from pathlib import Path

import jax
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy import export
from jaxcnn.deploy.card import card_path, render_card
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.trained import Trained, load_trained
from tests import saved

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

FORMS = ["stablehlo", "safetensors", "onnx"]
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


def code(text: str) -> str:
    """Returns the code of a card."""
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return found


def test_the_card(networks: dict[str, Trained], tmp_path: Path) -> None:
    network = networks["mnist"]
    path, there = export.write_export(network, "safetensors", tmp_path / "x.safetensors")
    text = there.read_text()
    assert there == card_path(path) == tmp_path / "x.safetensors.md"
    for part in (
        "datasets: [ylecun/mnist]",
        "MNIST network, recipe fast",
        "| 60.00% (42 of 70 test images) |",
        "207,258 parameters",
        "mean 0.1307, std 0.3081",
        "| 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |",
        "images of 28 x 28 pixels, grey",
        "uint8[N, 28, 28, 1]",
        "21 steps, 3 of 3 epochs, on the training images of mnist tiny, seed 0",
        f"| learning_rate | {network.recipe.learning_rate} |",
        "CC BY-SA 3.0",
        "Trained on cpu (of a test)",
        f"jax {jax.__version__}",
        export.describe_export("safetensors"),
    ):
        assert part in text
    assert "biases" not in text
    assert text.endswith("\n")
    text = render_card(network, "onnx", "x.onnx", "a file")
    assert "biases" not in text
    text = render_card(network, "onnx", "x.onnx", "a file", chosen_by_test=True)
    assert "test images, by which this checkpoint was chosen, which biases it upwards" in text


@pytest.mark.parametrize(
    ("name", "part"),
    [("colours", "not known to jaxcnn"), ("fashion_mnist", "/datasets/catalog/fashion_mnist")],
)
def test_the_card_of_other_data(name: str, part: str, tmp_path: Path, tiny_mnist: Dataset) -> None:
    workdir = saved.save(tmp_path, tiny_mnist, saves=[8], run={"dataset": name})
    text = render_card(load_trained(workdir), "onnx", "x.onnx", "a file")
    assert part in text
    assert f"# MNIST network for {name}, recipe" in text
    assert "one of its 10 classes" in text
    assert "LeCun" not in text
    assert "digits that are centred" not in text


@pytest.mark.parametrize(
    ("saves", "part"), [([8], "8 steps, 1 of 3 epochs"), ([3], "3 steps, 0 of 3 epochs")]
)
def test_the_card_of_synthetic_data_and_of_an_unfinished_epoch(
    saves: list[int], part: str, tmp_path: Path, tiny_mnist: Dataset
) -> None:
    dataset = dataclasses.replace(tiny_mnist, name="synthetic-mnist")
    network = load_trained(saved.save(tmp_path, dataset, saves=saves))
    text = render_card(network, "onnx", "x.onnx", "a file")
    assert part in text
    assert "not measured at this step" in text
    assert "synthetic-mnist, a synthetic data set: this network knows nothing about MNIST" in text
    assert "CC BY" not in text
    assert "datasets:" not in text


@pytest.mark.slow
def test_the_card_of_a_run_that_was_trained(tmp_path: Path, tiny_mnist: Dataset) -> None:
    dataset = dataclasses.replace(tiny_mnist, name="synthetic-mnist")
    policy = checkpoint.Policy(tmp_path / "checkpoints", checkpoint.Every(8, "steps"), keep=9)
    recipe = named.recipe("mnist", "fast").replace(epochs=1, batch_size=30)
    fit(recipe, dataset, checkpoints=policy)
    text = render_card(load_trained(tmp_path, "8"), "onnx", "x.onnx", "a file")
    assert "not measured at this step" in text
    assert "synthetic-mnist, a synthetic data set: this network knows nothing about MNIST" in text
    assert "CC BY" not in text
    assert "datasets:" not in text
    text = render_card(load_trained(tmp_path), "onnx", "x.onnx", "a file")
    assert "11 steps, 1 of 1 epochs" in text
    assert "not measured at this step" not in text


@pytest.mark.parametrize("form", FORMS)
def test_the_documentation_has_the_code_of_the_cards(
    form: str, networks: dict[str, Trained]
) -> None:
    assert code(render_card(networks["mnist"], form, f"mnist.{form}", "a file")) in DOCS.read_text()
