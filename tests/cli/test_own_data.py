"""A data set of the user's own, from the command line to a prediction."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.cli import tools
from jaxcnn.data.dataset import Dataset
from tests.official import Official
from tests.runs import load_tiny, start

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of twelve shades of red, one for each class."""
    labels = np.arange(120) % 12
    images = np.zeros((120, 12, 8, 3), np.uint8)
    images[..., 0] = 20 * labels[:, None, None] + 5
    names = np.array([f"shade {label}" for label in range(12)])
    path = tmp_path_factory.mktemp("data") / "shades.npz"
    np.savez(path, images=images, labels=labels, class_names=names)
    return path


def test_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "run"
    argv = f"--data {data} --workdir {workdir} --epochs 2 --batch-size 54 --hold-out 0.2"
    ended = start(*argv.split(), "--recipe", "reference", "--report", "never")
    assert ended.status == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "data: shades.npz own, 96 training and 24 test images of 12 classes"
    result = json.loads((workdir / "result.json").read_text())
    mean, std = ((20 * np.arange(12) + 5) / 255).mean(), ((20 * np.arange(12)) / 255).std()
    np.testing.assert_allclose(result["mean"], [mean, 0, 0], atol=1e-4)
    np.testing.assert_allclose(result["std"], [std, 1, 1], atol=1e-4)
    assert (result["dataset"], result["test_total"]) == ("shades.npz", 24)

    tools.main(["evaluate", str(workdir), "--data", str(data), "--hold-out", "0.2"])
    out = capsys.readouterr().out
    assert f"{result['test_correct']} correct of 24 total" in out
    assert "not that on which" not in out
    Image.new("RGB", (50, 90), (245, 0, 0)).save(tmp_path / "red.png")
    tools.main(["predict", str(workdir), str(tmp_path / "red.png")])
    out = capsys.readouterr().out
    assert "scaled to 8 x 12" in out
    assert "red.png: shade " in out
    with pytest.raises(SystemExit) as ended_evaluation:
        tools.main(["evaluate", str(workdir)])
    assert ended_evaluation.value.code == 2
    error = capsys.readouterr().err
    assert "the network was trained on shades.npz: give its path by --data" in error


def test_data_that_is_not_there() -> None:
    ended = start("--data", "mnits")
    assert ended.status == 2
    assert "there is no data set mnits: give one of mnist, fashion_mnist, " in ended.err
    assert "Traceback" not in ended.err


def test_a_share_out_of_range(data: Path) -> None:
    ended = start("--data", str(data), "--hold-out", "1.5")
    assert ended.status == 2
    assert "--hold-out" in ended.err


@pytest.mark.parametrize("name", ["emnist/letters"])
def test_another_data_set_of_tfds(
    name: str, official: Official, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its archives to a prediction; `evaluate` knows which data it was."""
    workdir = tmp_path / "run"
    argv = f"--data {name} --archive-dir {official.folder} --workdir {workdir} --epochs 3"
    ended = start(*argv.split(), "--recipe", "sprint", "--batch-size", "32", "--report", "never")
    assert ended.status == 0, ended.err
    assert f"data: {name} 3.1.0, 330 training and 70 test images of 37 classes" in ended.out
    result = json.loads((workdir / "result.json").read_text())
    assert result["dataset"] == name
    mean = official.splits["train"].images.mean() / 255
    np.testing.assert_allclose(result["mean"], [mean], atol=1e-4)

    tools.main(["evaluate", str(workdir)])
    out = capsys.readouterr().out
    assert f"test set of {name}: {result['test_correct']} correct of 70 total" in out
    assert "not that on which" not in out
    Image.new("L", (50, 90), 255).save(tmp_path / "letter.png")
    with Image.open(tmp_path / "letter.png") as sheet:
        sheet.paste(0, (10, 40, 40, 50))
        sheet.save(tmp_path / "letter.png")
    tools.main(["predict", str(workdir), str(tmp_path / "letter.png")])
    out = capsys.readouterr().out
    assert "dark on light, so inverted" in out
    assert re.search(r"letter\.png: [A-Z0-9]+ \(", out)


def test_the_data_of_the_other_network(tiny_cifar10: Dataset, tmp_path: Path) -> None:
    """It is normalized by its own moments, and loaded again by its own name."""
    path = tmp_path / "run"
    argv = ["--data", "cifar10", "--recipe", "sprint", "--epochs", "1", "--batch-size", "30"]
    asked: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.data.dataset.load_data", load_tiny(tiny_cifar10, asked))
        ended = start(*argv, "--report", "never", "--workdir", path)
        assert ended.status == 0, ended.err
        tools.main(["evaluate", str(path)])
    assert [one["name"] for one in asked] == ["cifar10", "cifar10"]
    result = json.loads((path / "result.json").read_text())
    assert (result["mean"], result["std"]) == tuple(map(list, tiny_cifar10.moments()))
