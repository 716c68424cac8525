import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn import checkpoint, commands, data, recipes, training
from jaxcnn.data import Dataset, Split

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = recipes.get("mnist", "fast").replace(epochs=12, batch_size=32)
    policy = checkpoint.Policy(folder / "checkpoints")
    training.fit(recipe, tiny_mnist, checkpoints=policy)
    return folder


def test_evaluate(
    workdir: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[dict] = []
    monkeypatch.setattr(data, "load", lambda name, **rest: asked.append(rest) or tiny_mnist)
    commands.main(["evaluate", str(workdir), "--data-dir", "/d"])
    out = capsys.readouterr().out
    history = checkpoint.listed(workdir / "checkpoints")[-1].read()["progress"]
    assert f"{history['test_correct']} right of 70 total, ratio" in out
    assert "step-0000000132" in out
    assert (asked[0]["source"], asked[0]["data_dir"]) == ("real", "/d")
    commands.main(["evaluate", str(workdir), "--checkpoint", "best"])
    assert "flatters" in capsys.readouterr().out
    commands.main(["evaluate", str(workdir), "--tta"])
    plain, averaged = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith("test set")
    )
    assert f"{history['test_correct']} right of 70" in plain
    assert "with test-time augmentation" in averaged
    labels = tiny_mnist.test.labels[::-1].copy()
    other = dataclasses.replace(tiny_mnist, test=Split(tiny_mnist.test.images, labels))
    monkeypatch.setattr(data, "load", lambda name, **rest: other)
    commands.main(["evaluate", str(workdir)])
    assert "not those that it was trained on" in capsys.readouterr().out


def test_predict(
    workdir: Path, tiny_mnist: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for index in range(4):
        image = tiny_mnist.test.images[index].copy()
        image[image < 100] = 0  # as MNIST's ground is
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image[..., 0]).save(paths[-1])
    commands.main(["predict", str(workdir), *paths, "--prepared", str(tmp_path / "prepared")])
    out = capsys.readouterr().out
    assert out.count("prepared: 28 x 28, light on dark: as it is") == 4
    assert out.count("##") > 100  # shown
    right = sum(f"{path}: {tiny_mnist.test.labels[i]} (" in out for i, path in enumerate(paths))
    assert right >= 3
    kept = sorted((tmp_path / "prepared").iterdir())
    assert [path.name for path in kept] == ["001-0.png", "002-1.png", "003-2.png", "004-3.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(kept[0])), np.asarray(Image.open(paths[0])))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "evaluate, report, predict, export, demo"),
        (["score"], "score"),
        (["evaluate"], "WORKDIR"),
        (["evaluate", "/nowhere"], "holds no checkpoint"),
        (["predict", "/nowhere"], "at least one picture"),
        (["predict", "/nowhere", "x.png"], "holds no checkpoint"),
        (["demo", "/nowhere"], "holds no checkpoint"),
        (["demo", "/nowhere", "--port", "x"], "--port"),
    ],
)
def test_mistakes(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        commands.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_picture_that_is_none(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(SystemExit) as caught:
        commands.main(["predict", str(workdir), str(tmp_path / "x.png")])
    assert caught.value.code == 2
    assert "cannot be read as a picture" in capsys.readouterr().err
