import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn.cli import tools
from jaxcnn.data.dataset import Dataset
from jaxcnn.landscape import survey
from tests import saved


@pytest.fixture(autouse=True)
def _data(tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: tiny_mnist)


def test_landscape(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(survey, "extreme_eigenvalues", lambda *_: (-1.0, np.array([3.0, 2.0])))
    for name in ("_UPDATE_POSITIONS", "_RANDOM_POSITIONS", "_PLANE_POSITIONS"):
        monkeypatch.setattr(survey, name, np.array([-1, 0, 1], np.float32))
    monkeypatch.setattr(survey, "_RANDOM_DIRECTIONS", 2)
    workdir = saved.save(tmp_path / "run", tiny_mnist, saves=saved.EPOCHS)
    argv = ["landscape", str(workdir), "--images", "200", "--eigenvalues", "2"]
    tools.main([*argv, "--checkpoint", "14", "--out", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "slices through step 14, along the update since step 7\n" in out
    assert f"{tmp_path / 'out' / 'landscape.json'}\n" in out
    content = json.loads((tmp_path / "out" / "landscape.json").read_text())
    assert (content["images"], content["slice_step"]) == (200, 14)
    tools.main([*argv, "--checkpoint", "all"])
    assert "largest eigenvalues 3, 2, smallest -1" in capsys.readouterr().out
    content = json.loads((workdir / "landscape.json").read_text())
    assert [point["step"] for point in content["points"]] == [7, 14, 21]
    for name in ("slices", "plane", "steps"):
        with Image.open(workdir / f"landscape-{name}.png") as image:
            assert image.size[0] > 400


def test_images_that_are_not_there(
    tmp_path: Path, tiny_mnist: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = saved.save(tmp_path / "run", tiny_mnist)
    with pytest.raises(SystemExit) as caught:
        tools.main(["landscape", str(workdir), "--images", "400"])
    assert caught.value.code == 2
    assert "give --images" in " ".join(capsys.readouterr().err.split())
