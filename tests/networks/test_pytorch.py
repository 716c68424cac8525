import functools
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from tests import original

NETWORKS = ["mnist", "cifar10"]
# Absolute for the logits and the maps, else relative to the norm: what README promises. Float32 is
# off by less than a tenth of that, see `test_rounding_cannot_reach_the_bounds`: the batches
# are such that it decides nothing.
TOLERANCES = {"eval_logits": 1e-5, "train_logits": 1e-5, "maps": 1e-5}


def needs(module: str) -> ModuleType:
    return pytest.importorskip(module, reason=f"no {module}: pip install 'jaxcnn[torch]'")


def errors(ours: dict, theirs: dict, scales: dict[str, float]) -> dict[str, float]:
    """Of every array, as a multiple of its tolerance."""
    assert set(ours) == set(theirs)
    found = {}
    for name in theirs:
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        kind = name.split("/")[0]
        if kind in TOLERANCES:
            found[name] = np.abs(one - other).max() / TOLERANCES[kind]
        else:
            found[name] = np.linalg.norm(one - other) / scales[name] / 1e-4
    return found


@pytest.fixture(scope="module", params=NETWORKS)
def measured(request: pytest.FixtureRequest) -> tuple[str, original.Arrays]:
    return request.param, original.measure_jaxcnn(request.param)


def test_against_recorded_values(measured: tuple[str, original.Arrays]) -> None:
    network, ours = measured
    recorded = original.record(network)
    found = errors(original.digest(ours), recorded["digests"], recorded["scales"])
    assert {name: error for name, error in found.items() if not error <= 1} == {}
    assert recorded["clearance"] >= original.CLEARANCE


@pytest.mark.slow
def test_against_pytorch_itself(measured: tuple[str, original.Arrays]) -> None:
    needs("torch")
    network, ours = measured
    for dtype in ("float64", "float32"):
        theirs = original.measure_pytorch(network, dtype)
        scales = {name: original.scale(network, name, theirs) for name in theirs}
        found = errors(ours, theirs, scales)
        assert {name: error for name, error in found.items() if not error <= 1} == {}, dtype


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_rounding_cannot_reach_the_bounds(network: str) -> None:
    needs("torch")
    peers = original.Peer(network, "float64"), original.Peer(network, "float32")
    for images, labels in original.batches(network):
        for peer in peers:
            peer.train(images, labels)
        # Half of what the record was chosen by: another processor's float32 rounds otherwise.
        assert original.clearance(*peers) >= original.CLEARANCE / 2
    exact, rounded = (original.measure_pytorch(network, kind) for kind in ("float64", "float32"))
    scales = {name: original.scale(network, name, exact) for name in exact}
    assert max(errors(rounded, exact, scales).values()) < 0.1


def test_the_measurement_covers_everything(measured: tuple[str, original.Arrays]) -> None:
    network, ours = measured
    kinds = {name.split("/")[0] for name in ours}
    expected = {"eval_logits", "train_logits", "loss", "grad", "after"}
    assert kinds == expected | ({"maps"} if network == "mnist" else {"stats"})
    parameters = 8 if network == "mnist" else 24
    assert len(original.trained(network)) == parameters
    assert sum(name.startswith("grad/") for name in ours) == parameters
    moved = [
        np.abs(ours[f"after/{k}"] - v).max()
        for k, v in original.weights(network).items()
        if k.endswith(".weight")  # biases before BatchNorm have no gradient
    ]
    assert min(moved) > 1e-5  # twenty steps changed every weight


PT = pytest.param(".pt", marks=pytest.mark.slow)  # needs torch


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("suffix", [".safetensors", PT])
def test_round_trip(tmp_path: Path, network: str, suffix: str) -> None:
    if suffix == ".pt":
        needs("torch")
    variables = pytorch.load_state_dict(original.weights(network))
    path = tmp_path / f"weights{suffix}"
    pytorch.save_state_dict(variables, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    again = pytorch.load_state_dict(path)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert jax.tree.structure(again) == jax.tree.structure(variables)


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_pytorch_loads_what_was_saved(tmp_path: Path, network: str) -> None:
    torch = needs("torch")
    from benchmarks.pytorch_networks import NETWORKS as PEERS

    variables = pytorch.load_state_dict(original.weights(network))
    pytorch.save_state_dict(variables, tmp_path / "w.pt")
    peer = PEERS[network]()
    peer.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True), strict=True)
    images = np.random.RandomState(0).standard_normal((5, *original.SHAPES[network]))
    with torch.no_grad():
        theirs = peer.eval()(torch.tensor(images.transpose(0, 3, 1, 2), dtype=torch.float32))
    ours = original.model(network).apply(variables, jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for state_dict in (peer.state_dict(), {f"module.{k}": v for k, v in peer.state_dict().items()}):
        jax.tree.map(np.testing.assert_array_equal, pytorch.load_state_dict(state_dict), variables)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("conv2.bias"), "^the state dict lacks conv2.bias"),
        (lambda w: w.update({"conv9.bias": np.zeros(3, np.float32)}), "holds conv9.bias, which"),
        (
            lambda w: w.update({"fc1.weight": w["fc1.weight"].T}),
            r"fc1.weight of shape \(392, 512\), and MnistCNN needs \(512, 392\)",
        ),
        (lambda w: w.update({"fc2.bias": np.zeros(10, np.int64)}), "fc2.bias of int64"),
    ],
    ids=["missing", "extra", "misshapen", "integers"],
)
def test_a_bad_tensor_is_named(change: object, said: str) -> None:
    weights = original.weights("mnist")
    change(weights)
    with pytest.raises(UserError, match=said):
        pytorch.load_state_dict(weights)


def test_the_file_of_a_bad_tensor_is_named(tmp_path: Path) -> None:
    weights = original.weights("mnist")
    weights["fc3.bias"] = weights.pop("fc2.bias")
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors holds fc3\.bias"):
        pytorch.load_state_dict(tmp_path / "w.safetensors")


class Tensor:
    """As `torch.Tensor` is asked for its numbers."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype = array, f"torch.{array.dtype}"

    def is_floating_point(self) -> bool:
        return self.array.dtype.kind == "f"

    def detach(self) -> "Tensor":
        return self

    cpu = detach

    def float(self) -> "Tensor":
        return Tensor(self.array.astype(np.float32))

    def numpy(self) -> np.ndarray:
        return self.array


def test_tensors_become_arrays() -> None:
    weights = original.weights("mnist")
    tensors = {f"module.{k}": Tensor(v.astype(np.float64)) for k, v in weights.items()}
    found, expected = pytorch.load_state_dict(tensors), pytorch.load_state_dict(weights)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    tensors["module.fc1.bias"] = Tensor(np.zeros(512, np.int32))
    with pytest.raises(UserError, match=r"fc1\.bias of torch\.int32"):
        pytorch.load_state_dict(tensors)


def test_values_that_are_not_finite_are_kept_and_named(caplog: pytest.LogCaptureFixture) -> None:
    weights = original.weights("mnist")
    pytorch.load_state_dict(weights)
    assert not caplog.messages
    weights["fc1.weight"] = np.where(np.eye(512, 392), np.nan, weights["fc1.weight"])
    weights["fc2.bias"] = np.full(10, np.inf)
    variables = pytorch.load_state_dict(weights)
    assert caplog.messages == [
        "the state dict holds values that are not finite, in fc1.weight, fc2.bias"
    ]
    assert np.isnan(variables["params"]["fc1"]["kernel"]).sum() == 392
    assert np.isinf(variables["params"]["fc2"]["bias"]).all()


def test_misshapen_variables_are_refused() -> None:
    variables = pytorch.load_state_dict(original.weights("mnist"))
    variables["params"]["fc1"]["bias"] = jnp.zeros(9)
    with pytest.raises(UserError, match=r"params/fc1/bias has the shape \(9,\).* \(512,\)"):
        pytorch.to_state_dict(variables)


def test_saving_incomplete_variables_is_refused(tmp_path: Path) -> None:
    variables = pytorch.load_state_dict(original.weights("cifar10"))
    with pytest.raises(UserError, match="lack batch_stats/batch_norm1"):
        pytorch.save_state_dict({"params": variables["params"]}, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "wrapped",
    [
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"epoch": 3, "model_state_dict": tensors, "optimizer_state_dict": {}},
        lambda tensors: {"model": tensors, "optimizer": {}, "step": 3},
        lambda tensors: {"state_dict": {f"model.{name}": t for name, t in tensors.items()}},
        lambda tensors: {name: t.astype(jnp.bfloat16) for name, t in tensors.items()},
        lambda tensors: {name: t.astype(np.float16) for name, t in tensors.items()},
        lambda tensors: {name: t.astype(np.float64) for name, t in tensors.items()},
    ],
    ids="module compiled both other checkpoint nested lightning bfloat16 float16 float64".split(),
)
def test_what_training_loops_put_around_weights(network: str, wrapped: Any) -> None:
    tensors = original.weights(network)
    expected = pytorch.load_state_dict(tensors)
    found = pytorch.load_state_dict(wrapped(tensors))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-5)
    jax.tree.map(close, found, expected)


def test_weights_of_a_part_of_cifar10_s_network_are_not_mnist_s() -> None:
    tensors = {k: v for k, v in original.weights("cifar10").items() if "batch_norm" not in k}
    with pytest.raises(UserError, match=r"lacks batch_norm1.*which Cifar10CNN has"):
        pytorch.load_state_dict(tensors)
