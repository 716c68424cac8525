import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import optax
import pytest

from jaxcnn import checkpoint, manifest, models, recipes, trained, training
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from tests.test_checkpoint import flip

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

RECIPE = recipes.get("mnist", "fast").replace(epochs=3, batch_size=50, ema=0.5)


@pytest.fixture
def run(tmp_path: Path, tiny_mnist: Dataset) -> tuple[Path, training.Result]:
    policy = checkpoint.Policy(tmp_path / "run" / "checkpoints", keep=3)
    return tmp_path / "run", training.fit(RECIPE, tiny_mnist, checkpoints=policy)


def test_what_was_trained_is_what_is_loaded(
    run: tuple[Path, training.Result], tiny_mnist: Dataset
) -> None:
    workdir, result = run
    found = trained.load(workdir)
    assert found.recipe == RECIPE
    assert found.checkpoint.step == 21
    correct, total, _ = training.evaluate(found.recipe, found.variables, tiny_mnist.test)
    assert (correct, total) == (result.test_correct, result.test_total)
    rows = found.probabilities(tiny_mnist.test.images)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
    assert (rows.argmax(-1) == tiny_mnist.test.labels).sum() == correct
    maps = found.feature_maps(tiny_mnist.test.images[:3])
    assert {name: values.shape for name, values in maps.items()} == {
        "conv1": (3, 28, 28, 4),
        "conv2": (3, 14, 14, 8),
    }
    images = found.model, found.variables, (tiny_mnist.test.images[:3] / 255 - 0.1307) / 0.3081
    for name, values in models.feature_maps(*images).items():
        np.testing.assert_allclose(maps[name], values, atol=1e-5)
    assert trained.load(workdir / "checkpoints", "7").checkpoint.step == 7
    scores = [record.test_accuracy for record in result.history]
    best = trained.load(workdir, "best").checkpoint.step
    assert scores[best // 7 - 1] == max(scores)


def test_the_newest_sound_one(run: tuple[Path, training.Result]) -> None:
    workdir, _ = run
    newest = checkpoint.listed(workdir / "checkpoints")[-1].folder
    flip(newest / manifest.NAME)
    said: list[str] = []
    assert trained.load(workdir, report=said.append).checkpoint.step == 14
    assert "step-0000000021 is damaged" in said[0]
    assert newest.is_dir()  # only a run that goes on sets it aside
    with pytest.raises(UserError, match=r"is damaged .manifest.json"):
        trained.load(workdir, "21")
    for other in checkpoint.listed(workdir / "checkpoints"):
        flip(other.folder / "arrays" / "manifest.ocdbt")
    with pytest.raises(UserError, match=r"no checkpoint in .* is sound"):
        trained.load(workdir)


def test_mistakes(run: tuple[Path, training.Result], tmp_path: Path, tiny_mnist: Dataset) -> None:
    workdir, _ = run
    for which in ("8", "first", "-1", ""):
        with pytest.raises(UserError, match="one of the steps 7, 14, 21"):
            trained.load(workdir, which)
    with pytest.raises(UserError, match="holds no checkpoint"):
        trained.load(tmp_path)
    own = checkpoint.Policy(tmp_path / "own")
    training.fit(RECIPE.replace(epochs=1), tiny_mnist, tx=optax.sgd(0.1), checkpoints=own)
    with pytest.raises(UserError, match="given in code"):
        trained.load(tmp_path / "own")


AUDIT = """
import json, sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if "pickle" in event else None)
from pathlib import Path
from jaxcnn import pytorch, trained
from jaxcnn.data import cache
network = trained.load(sys.argv[1])
pytorch.save_state_dict(network.variables, sys.argv[1] + "/w.safetensors")
pytorch.load_state_dict(sys.argv[1] + "/w.safetensors")
import numpy as np
build = lambda: cache.Arrays({"a": np.arange(3)}, ("x",))
for _ in range(2):
    cache.load(Path(sys.argv[1]) / "cache", fingerprint={}, build=build)
print(json.dumps(seen))
"""


def test_nothing_that_is_loaded_is_unpickled(run: tuple[Path, training.Result]) -> None:
    workdir, _ = run
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, str(workdir)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    for path in workdir.rglob("*"):
        assert path.is_dir() or not path.read_bytes().startswith((b"\x80\x04", b"\x80\x05"))
