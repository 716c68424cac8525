import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.start import checked_start, digest, load_start
from tests import conformance, original, saved

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

DATA = conformance.dataset()
MODEL = conformance.SmallCNN()
RECIPE = conformance.RECIPE.replace(epochs=1, batch_size=160, optimizer="sgd")


def trained(**options: Any) -> Any:
    return fit(RECIPE, DATA, model=MODEL, **options)


def twelve() -> Dataset:
    """The same images with twelve classes."""
    return dataclasses.replace(DATA, class_names=tuple("abcdefghijkl"))


def test_a_run_begins_with_given_weights(tmp_path: Path) -> None:
    """With no rate to speak of, a second run ends where the first one did."""
    first = trained().state
    still = RECIPE.replace(learning_rate=1e-30, weight_decay=0.0)
    policy = checkpoint.Policy(tmp_path)
    second = fit(still, DATA, model=MODEL, start=first.variables, checkpoints=policy, seed=7).state
    jax.tree.map(np.testing.assert_array_equal, second.params, first.params)
    assert (second.batch_stats["BatchNorm_0"]["mean"] != 0).all()
    with pytest.raises(UserError, match=r"holds another run \(start "):
        fit(still, DATA, model=MODEL, checkpoints=policy, seed=7)


def test_another_number_of_classes() -> None:
    """The outputs begin anew, all else as given."""
    start = trained().state.variables
    model = conformance.SmallCNN(classes=12)
    arrays, anew = checked_start(start, model, twelve())
    assert anew == ["params/Dense_0/bias", "params/Dense_0/kernel"]
    kernel = start["params"]["Conv_0"]["kernel"]
    np.testing.assert_array_equal(arrays["params/Conv_0/kernel"], kernel)
    still = RECIPE.replace(learning_rate=1e-30, weight_decay=0.0)
    state = fit(still, twelve(), model=model, start=start).state
    np.testing.assert_array_equal(state.params["Conv_0"]["kernel"], kernel)
    assert state.params["Dense_0"]["bias"].shape == (12,)


def test_weights_that_do_not_fit() -> None:
    start = jax.tree.map(np.asarray, trained().state.variables)
    less = {"params": {k: v for k, v in start["params"].items() if k != "Dense_0"}}
    less["batch_stats"] = start["batch_stats"]
    with pytest.raises(UserError, match="begin with lack params/Dense_0/bias, other than SmallCNN"):
        checked_start(less, MODEL, DATA)

    class Other(nn.Module):
        @nn.compact
        def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
            return nn.Dense(10)(images.reshape(len(images), -1))

    with pytest.raises(UserError, match=r"hold batch_stats/.*, other than .*Other: give weights"):
        checked_start(start, Other(), DATA)
    start["params"]["Conv_0"]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match=r"hold params/Conv_0/bias \[3\], and the network needs \["):
        checked_start(start, MODEL, DATA)


def test_files_and_workdirs(tmp_path: Path, tiny_mnist: Dataset) -> None:
    variables = pytorch.load_state_dict(original.weights("mnist"))
    pytorch.save_state_dict(variables, tmp_path / "w.safetensors")
    found = load_start(tmp_path / "w.safetensors", tiny_mnist)
    jax.tree.map(np.testing.assert_array_equal, found["params"], variables["params"])
    workdir = saved.save(tmp_path / "run", tiny_mnist)
    of_run = load_start(workdir, tiny_mnist)
    assert of_run["params"].keys() == variables["params"].keys()
    with pytest.raises(UserError, match="two original networks alone: give the workdir"):
        load_start(tmp_path / "w.safetensors", tiny_mnist, MODEL)


def test_the_digest_tells_arrays_apart() -> None:
    one, other = np.zeros(4, np.float32), np.zeros((2, 2), np.float32)
    values = {digest({"a": one}), digest({"b": one}), digest({"a": other}), digest({"a": one + 1})}
    assert len(values) == 4
    assert digest({"a": one, "b": other}) == digest({"b": other, "a": one})
