import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.cli import tools
from jaxcnn.data.dataset import Dataset
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.study.rate_range import RateRange
from tests.linear import Linear
from tests.study.test_rate_range import RATES, made_up

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(autouse=True)
def _small(tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: tiny_mnist)
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: Linear())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, dict[str, Any]]]:
    """The arguments of `find_rate`, which does not train: muon diverges everywhere."""
    calls: list[tuple[Recipe, dict[str, Any]]] = []

    def find(recipe: Recipe, dataset: Dataset, **options: Any) -> RateRange:
        calls.append((recipe, options))
        if recipe.optimizer == "muon":
            return made_up([np.nan] * 5, None, "muon")
        losses = {"lion": [0.1, 0.2, 0.4, 1.0, 5.0]}.get(recipe.optimizer, [2, 1, 0.25, 3, np.nan])
        return made_up(losses, RATES[losses.index(min(losses[:3]))], recipe.optimizer)

    monkeypatch.setattr("jaxcnn.study.rate_range.find_rate", find)
    return calls


def test_a_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "find-rate mnist --optimizer sgd --batch-size 30 --rates 5 --steps 9"
    argv += " --low 1e-4 --high 1e4 --optimizer-args momentum=0.0"
    tools.main([*argv.split(), "--out", str(tmp_path / "new")])
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "new" / "find-rate.json").read_text())
    (found,) = content["ranges"]
    assert found["learning_rates"] == [1e-4, 1e-2, 1, 100, 1e4]
    assert (found["steps"], found["recipe"]["batch_size"]) == (9, 30)
    assert found["recipe"]["optimizer_args"] == {"momentum": 0.0}
    assert found["diverged"][-1]
    assert found["suggestion"] in (0.01, 1, 100)
    assert f"suggested: --optimizer sgd --learning-rate {found['suggestion']:g}\n" in out
    assert f"results: {tmp_path / 'new'}" in out
    assert (content["dataset"], content["seed"]) == ("mnist", 0)
    with Image.open(tmp_path / "new" / "find-rate.png") as image:
        assert image.size == (1040, 624)


def test_several_optimizers(
    asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = "find-rate mnist --optimizer sgd prodigy muon lion --clip 2 --seed 7 --weight-decay 0.5"
    tools.main([*argv.split(), "--recipe", "best", "--out", str(tmp_path)])
    out = capsys.readouterr().out.splitlines()
    table = out.index("optimizer  learns from  diverges from  held-out loss  suggested rate")
    assert [line.split() for line in out[table + 1 : table + 5]] == [
        ["sgd", "0.001", "1", "0.2500", "0.1"],
        ["prodigy", "0.001", "1", "0.2500", "0.1"],
        ["muon", "none", "0.001", "none"],
        ["lion", "0.001", "10", "0.1000", "0.001"],
    ]
    said = "\n".join(out[table + 5 :])
    assert "prodigy estimates its step size" in said
    assert "sgd estimates" not in said
    assert "muon has learnt nothing at any rate" in said
    assert "lion: the best rate is at the edge of those tried; change --low" in said
    assert said.count("suggested: ") == 3
    for recipe, options in asked:
        assert (recipe.clip, recipe.weight_decay, recipe.batch_size) == (2, 0.5, 256)
        assert (options["seed"], options["count"], options["steps"]) == (7, 19, None)
    rates = [recipe.learning_rate for recipe, _ in asked]
    assert rates == [0.05, 1.0, 0.01, 0.0002]  # muon is the recipe's, with its rate
    content = json.loads((tmp_path / "find-rate.json").read_text())
    assert [found["optimizer"] for found in content["ranges"]] == ["sgd", "prodigy", "muon", "lion"]


def test_the_recipe_s_optimizer_in_a_new_folder(
    asked: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tools.main(["find-rate", "mnist", "--recipe", "sprint"])
    assert asked[0][0].optimizer == "nadamw"
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("find-rate-mnist-2")
    assert f"results: runs/{folder.name}" in capsys.readouterr().out


MISTAKES = [
    ("--optimizer sdg", "did you mean sgd?"),
    ("--optimizer sgd sgd", "each name once"),
    ("--batch-size 0", "--batch-size takes a whole number"),
    ("--optimizer sgd --optimizer-args b1=1", "sgd has no such argument"),
    ("--recipe quick", "--recipe: recipe takes"),
    ("--rates 2", "--rates takes a whole number from 3 to 1000"),
    ("--steps 0", "--steps takes a whole number from 1"),
    ("--seed -1", "--seed takes"),
    ("--low 2 --high 1", "got 2 and 1"),
    ("--out /proc/jaxcnn/x", "give --out a folder"),
]


@pytest.mark.parametrize(("flags", "message"), MISTAKES)
def test_mistakes(
    flags: str, message: str, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tools.main(["find-rate", "mnist", *flags.split()])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    assert not asked
