import dataclasses
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxcnn.data.cache import Arrays, load_or_build
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import DataError, UserError
from jaxcnn.networks import pytorch
from jaxcnn.networks.cnn import MnistCNN
from jaxcnn.networks.inspect import feature_maps
from jaxcnn.recipes.named import recipe
from jaxcnn.storage import checkpoint, manifest
from jaxcnn.train.evaluate import evaluate
from jaxcnn.train.fit import fit
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.conformance import SmallCNN
from tests.storage.test_checkpoint import flip

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

RECIPE = recipe("mnist", "fast").replace(epochs=3, batch_size=50, ema=0.5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    return saved.save(tmp_path_factory.mktemp("run"), tiny_mnist, saves=saved.EPOCHS)


@pytest.fixture(scope="module")
def network(workdir: Path) -> Trained:
    return load_trained(workdir)


def equal(variables: Any, network: str, step: int) -> bool:
    """Whether these are the weights of a checkpoint, to the last bit."""
    found, expected = pytorch.to_state_dict(variables), saved.weights(network, step)
    return all(np.array_equal(found[name], values) for name, values in expected.items())


def test_a_checkpoint_is_loaded(workdir: Path, network: Trained) -> None:
    assert network.recipe == saved.recipe("mnist")
    assert isinstance(network.model, MnistCNN)
    assert network.run["seed"] == 0
    assert network.checkpoint == checkpoint.list_checkpoints(workdir / "checkpoints")[-1]
    assert equal(network.variables, "mnist", saved.LAST)
    for folder, which, step in (
        (workdir / "checkpoints", "7", 7),
        (workdir, "14", 14),
        (workdir, "best", 14),
        (workdir, "latest", 21),
    ):
        found = load_trained(folder, which)
        assert found.checkpoint.step == step
        assert equal(found.variables, "mnist", step)


def test_a_home_folder_is_found(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(workdir.parent))
    assert load_trained(f"~/{workdir.name}").checkpoint.step == saved.LAST


def test_probabilities_and_accuracy(network: Trained, tiny_mnist: Dataset) -> None:
    """By float64, and on images whose prediction rounding does not change."""
    images = tiny_mnist.test.images
    logits = saved.exact_logits(network.recipe, network.variables, images)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rows = network.probabilities(images)
    assert (rows.dtype, rows.shape) == (np.float32, (70, 10))
    # Float32 leaves 6e-8 of a sum; a thousand terms are summed, most of them far below one.
    np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    second, first = np.sort(logits)[:, -2:].T
    clear = first - second > 1e-4
    labels = np.where(np.arange(70) % 3 == 0, logits.argmin(-1), logits.argmax(-1))[clear]
    split = Split(images[clear], labels.astype(np.int32))
    right = int(np.sum(np.arange(70)[clear] % 3 != 0))
    assert right > 30
    assert int(np.sum(rows.argmax(-1)[clear] == labels)) == right
    correct, total, loss = evaluate(network.recipe, network.variables, split)
    assert (correct, total) == (right, len(labels))
    cross_entropies = -np.log(expected[clear][np.arange(len(labels)), labels])
    assert loss == pytest.approx(cross_entropies.mean(), abs=1e-5)


@pytest.mark.parametrize("answer", ["probabilities", "feature_maps"])
def test_images_that_are_none(network: Trained, tiny_mnist: Dataset, answer: str) -> None:
    images = np.array(tiny_mnist.test.images[:3])
    for wrong, said in (
        (images / 255, r"the images are float64\[3, 28, 28, 1\] up to 0\."),
        (images[0], r"the images are \[28, 28, 1, 1\]: the network takes \[N, 28, 28, 1\]"),
        (images[:, :20], r"the images are \[3, 20, 28, 1\]"),
    ):
        with pytest.raises(DataError, match=said):
            getattr(network, answer)(wrong)
    probabilities = network.probabilities(images)
    np.testing.assert_array_equal(network.probabilities(images[..., 0]), probabilities)
    with pytest.raises(DataError, match="the images of the split are float64"):
        evaluate(network.recipe, network.variables, Split(images / 255, np.arange(3)))


def test_feature_maps(network: Trained, tiny_mnist: Dataset) -> None:
    """By float64, written out."""
    images = tiny_mnist.test.images[:3]
    maps = network.feature_maps(images)
    weights = {name: values.astype(float) for name, values in saved.weights("mnist").items()}
    x = ((images / 255 - network.recipe.mean) / network.recipe.std).transpose(0, 3, 1, 2)
    for layer in (1, 2):
        padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), (2, 3))
        x = np.einsum("bihwkl,oikl->bohw", windows, weights[f"conv{layer}.weight"])
        x = np.maximum(x + weights[f"conv{layer}.bias"][:, None, None], 0)
        found = maps[f"conv{layer}"]
        assert isinstance(found, np.ndarray)
        assert found.shape == {1: (3, 28, 28, 4), 2: (3, 14, 14, 8)}[layer]
        # Sums of 25 and of 100 terms of order one: float32 leaves some 1e-6.
        np.testing.assert_allclose(found, x.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)
        x = np.maximum.reduce([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)])
    assert list(maps) == ["conv1", "conv2"]


def test_the_parameters_to_evaluate_at_are_loaded(tmp_path: Path, tiny_mnist: Dataset) -> None:
    """Lookahead's slow parameters, which are all ones in what was saved."""
    found = load_trained(saved.save(tmp_path, tiny_mnist, saves=[7], optimizer="lookahead"))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(found.variables["params"]))


@pytest.mark.parametrize(
    "run",
    [
        {"own_tx": True},
        {"optimizer": "subprocess:run", "optimizer_args": {"args": "false"}},
        {"optimizer": "lookahead", "optimizer_args": {"fast_optimizer": "os:_exit"}},
    ],
)
def test_no_optimizer_is_made(run: dict[str, Any], tmp_path: Path, tiny_mnist: Dataset) -> None:
    """Which may be given in code, or be code that only the file names."""
    workdir = saved.save(tmp_path, tiny_mnist, saves=[7], run=run)
    found = load_trained(workdir)
    jax.tree.map(
        np.testing.assert_array_equal,
        found.variables["params"],
        pytorch.load_state_dict(saved.weights("mnist", 7))["params"],
    )
    assert found.run["optimizer"] == run.get("optimizer", found.run["optimizer"])


def test_the_newest_sound_one(workdir: Path, tmp_path: Path) -> None:
    workdir = Path(shutil.copytree(workdir, tmp_path / "run"))
    newest = checkpoint.list_checkpoints(workdir / "checkpoints")[-1].folder
    flip(newest / manifest.NAME)
    said: list[str] = []
    assert load_trained(workdir, report=said.append).checkpoint.step == 14
    assert "step-0000000021 is damaged" in said[0]
    assert newest.is_dir()  # only a run that goes on sets it aside
    with pytest.raises(UserError, match=r"is damaged .manifest.json"):
        load_trained(workdir, "21")
    for other in checkpoint.list_checkpoints(workdir / "checkpoints"):
        flip(other.folder / checkpoint.ARRAYS)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        load_trained(workdir)


def test_mistakes(workdir: Path, tmp_path: Path, tiny_mnist: Dataset) -> None:
    for which in ("8", "first", "-1", ""):
        with pytest.raises(UserError, match="one of the steps 7, 14, 21"):
            load_trained(workdir, which)
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_trained(tmp_path)
    own = saved.save(tmp_path / "own", tiny_mnist, saves=[7], run={"model": SmallCNN.__qualname__})
    with pytest.raises(UserError, match="given in code"):
        load_trained(own)
    senseless = saved.save(tmp_path / "senseless", tiny_mnist, saves=[7], run={"epochs": -1})
    said: list[str] = []
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        load_trained(senseless, report=said.append)
    assert "manifest.json is no run's (epochs takes" in said[0]


@pytest.fixture(scope="session")
def unpickling() -> list[str]:
    """The audit events of pickle from now on; such a hook cannot be taken away again."""
    events: list[str] = []
    sys.addaudithook(lambda event, args: events.append(event) if "pickle" in event else None)
    return events


def test_nothing_that_is_loaded_is_unpickled(
    workdir: Path, tmp_path: Path, unpickling: list[str]
) -> None:
    pickle.loads(pickle.dumps(tmp_path))
    assert "pickle.find_class" in unpickling
    unpickling.clear()
    variables = load_trained(workdir).variables
    pytorch.save_state_dict(variables, tmp_path / "w.safetensors")
    pytorch.load_state_dict(tmp_path / "w.safetensors")
    for _ in range(2):
        load_or_build(
            tmp_path / "cache",
            fingerprint={},
            build=lambda: Arrays({"a": np.arange(3)}, ("x",)),
        )
    assert unpickling == []
    for path in [*workdir.rglob("*"), *tmp_path.rglob("*")]:
        assert path.is_dir() or not path.read_bytes().startswith((b"\x80\x04", b"\x80\x05"))


@pytest.mark.slow
def test_what_was_trained_is_what_is_loaded(tmp_path: Path, tiny_mnist: Dataset) -> None:
    workdir = tmp_path / "run"
    policy = checkpoint.Policy(workdir / "checkpoints", keep=3)
    result = fit(RECIPE, tiny_mnist, checkpoints=policy)
    found = load_trained(workdir)
    assert found.recipe == RECIPE
    assert found.checkpoint.step == 21
    correct, total, _ = evaluate(found.recipe, found.variables, tiny_mnist.test)
    assert (correct, total) == (result.test_correct, result.test_total)
    rows = found.probabilities(tiny_mnist.test.images)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)  # ten roundings of 6e-8
    # Where rounding decides, another program may predict another class.
    second, first = np.sort(rows)[:, -2:].T
    unclear = int(np.sum(first - second < 1e-4))
    assert abs((rows.argmax(-1) == tiny_mnist.test.labels).sum() - correct) <= unclear
    maps = found.feature_maps(tiny_mnist.test.images[:3])
    images = found.model, found.variables, (tiny_mnist.test.images[:3] / 255 - 0.1307) / 0.3081
    for name, values in feature_maps(*images).items():
        np.testing.assert_allclose(maps[name], values, atol=1e-5)  # as above
    assert load_trained(workdir / "checkpoints", "7").checkpoint.step == 7
    scores = [record.test_accuracy for record in result.history]
    best = load_trained(workdir, "best").checkpoint.step
    assert scores[best // 7 - 1] == max(scores)
    own = checkpoint.Policy(tmp_path / "own")
    one = RECIPE.replace(epochs=1)
    result = fit(one, tiny_mnist, tx=optax.sgd(0.1), checkpoints=own)
    found = load_trained(tmp_path / "own")  # though its optimizer was given in code
    jax.tree.map(np.testing.assert_array_equal, found.variables, result.state.variables)


def test_characters_of_emnist_are_made_as_digits(network: Trained) -> None:
    names = tuple("abc")
    assert network.reads_digits
    assert not dataclasses.replace(network, class_names=names).reads_digits
    letters = {**network.run, "dataset": "emnist/letters"}
    assert dataclasses.replace(network, class_names=names, run=letters).reads_digits
    titles = {"mnist": "MNIST", "synthetic-mnist": "MNIST", "emnist/letters": "emnist/letters"}
    for name, title in titles.items():
        assert dataclasses.replace(network, run={"dataset": name}).title == title
    assert not dataclasses.replace(network, image_shape=(32, 32, 3), run=letters).reads_digits


def test_a_network_of_other_images_and_classes(tmp_path: Path) -> None:
    """What `fit` was given decides; the checkpoint says it, and every command follows."""
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (24, 12, 8, 2), np.uint8), np.arange(24) % 12)
    names = tuple("abcdefghijkl")
    dataset = Dataset("letters", "1", split, split, names)
    small = RECIPE.replace(epochs=1, batch_size=12, augment="none", mean=(0.5, 0.4))
    with pytest.raises(UserError, match="std has 3 values, and the images 2 channels"):
        fit(small.replace(std=(1.0, 1.0, 1.0)), dataset)
    result = fit(small, dataset, checkpoints=checkpoint.Policy(tmp_path / "checkpoints"))
    network = load_trained(tmp_path)
    assert (network.class_names, network.image_shape) == (names, (12, 8, 2))
    assert not network.reads_digits
    assert network.probabilities(split.images).shape == (24, 12)
    scores = evaluate(network.recipe, network.variables, split, model=network.model)
    assert scores[:2] == (result.test_correct, 24)
    weights = pytorch.to_state_dict(network.variables, network.image_shape)
    assert weights["fc1.weight"].shape == (512, 3 * 2 * 8)
    again = pytorch.load_state_dict(weights, network.image_shape)
    jax.tree.map(np.testing.assert_array_equal, again["params"], network.variables["params"])
    odd = Split(split.images[:, :10], split.labels)
    with pytest.raises(UserError, match="10 x 8 x 2, and MnistCNN halves height and width 2 times"):
        fit(small, Dataset("letters", "1", odd, odd, names))


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": []},
        {"class_names": [1]},
        {"class_names": "ab"},
        {"image_shape": [28, 28]},
        {"image_shape": [28, 28, 0]},
        {"image_shape": [28, "28", 1]},
    ],
)
def test_forged_classes_and_shapes(
    change: dict[str, Any], tmp_path: Path, tiny_mnist: Dataset
) -> None:
    saved.save(tmp_path, tiny_mnist, run=change)
    with pytest.raises(UserError, match="damaged"):
        load_trained(tmp_path)
