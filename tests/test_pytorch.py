import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models, pytorch, recipes, training
from jaxcnn.errors import UserError
from tests import original

NETWORKS = ["mnist", "cifar10"]
# Absolute for the logits and the maps, else relative to the norm.
TOLERANCES = {"eval_logits": 1e-5, "train_logits": 1e-5, "maps": 1e-5}


def assert_close(
    network: str, ours: dict, theirs: dict, scales: dict[str, float], measured: str
) -> None:
    assert set(ours) == set(theirs)
    for name in theirs:
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        kind = name.split("/")[0]
        if kind in TOLERANCES:
            error, tolerance = np.abs(one - other).max(), TOLERANCES[kind]
        else:
            error, tolerance = np.linalg.norm(one - other) / scales[name], 1e-4
        assert error <= tolerance, f"{network} {name} is off {measured} by {error}"


@pytest.fixture(scope="module", params=NETWORKS)
def measured(request: pytest.FixtureRequest) -> tuple[str, original.Arrays]:
    return request.param, original.measure_jaxcnn(request.param)


def test_against_pytorch_itself(measured: tuple[str, original.Arrays]) -> None:
    pytest.importorskip("torch")
    network, ours = measured
    theirs = original.measure_pytorch(network)
    scales = {name: original.scale(network, name, theirs) for name in theirs}
    assert_close(network, ours, theirs, scales, "PyTorch")


def test_against_recorded_values(measured: tuple[str, original.Arrays]) -> None:
    network, ours = measured
    record = json.loads(original.RECORD.read_text())["networks"][network]
    assert_close(network, original.digest(ours), record["digests"], record["scales"], "the record")


def test_the_measurement_covers_everything(measured: tuple[str, original.Arrays]) -> None:
    network, ours = measured
    kinds = {name.split("/")[0] for name in ours}
    expected = {"eval_logits", "train_logits", "loss", "grad", "after"}
    assert kinds == expected | ({"maps"} if network == "mnist" else {"stats"})
    parameters = 8 if network == "mnist" else 24
    assert sum(name.startswith("grad/") for name in ours) == parameters
    moved = [
        np.abs(ours[f"after/{k}"] - v).max()
        for k, v in original.weights(network).items()
        if k.endswith(".weight")  # biases before BatchNorm have no gradient
    ]
    assert min(moved) > 1e-5  # twenty steps changed every weight


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_round_trip(tmp_path: Path, network: str, suffix: str) -> None:
    if suffix == ".pt":
        pytest.importorskip("torch")
    variables = pytorch.load_state_dict(original.weights(network))
    path = tmp_path / f"weights{suffix}"
    pytorch.save_state_dict(variables, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    again = pytorch.load_state_dict(path)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert jax.tree.structure(again) == jax.tree.structure(variables)


@pytest.mark.parametrize("network", NETWORKS)
def test_pytorch_loads_what_was_saved(tmp_path: Path, network: str) -> None:
    torch = pytest.importorskip("torch")
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
        (lambda w: w.pop("conv2.bias"), "lacks conv2.bias"),
        (lambda w: w.update({"conv9.bias": np.zeros(3, np.float32)}), "holds conv9.bias, which"),
        (
            lambda w: w.update({"fc1.weight": w["fc1.weight"].T}),
            r"fc1.weight of shape \(392, 512\), and the mnist network needs \(512, 392\)",
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


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_a_bad_file_is_named(tmp_path: Path, suffix: str) -> None:
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"w{suffix}"
    with pytest.raises(UserError, match=path.name):
        pytorch.load_state_dict(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=path.name):
        pytorch.load_state_dict(path)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt is no whole"):
        pytorch.load_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_safetensors_work_without_torch(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None
from jaxcnn import errors, pytorch
from tests import original
variables = pytorch.load_state_dict(original.weights("mnist"))
path = sys.argv[1]
pytorch.save_state_dict(variables, path + "/w.safetensors")
pytorch.load_state_dict(path + "/w.safetensors")
try:
    pytorch.save_state_dict(variables, path + "/w.pt")
except errors.UserError as error:
    assert "jaxcnn[torch]" in str(error)
else:
    sys.exit("no error")
"""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_saving_incomplete_variables_is_refused(tmp_path: Path) -> None:
    variables = pytorch.load_state_dict(original.weights("cifar10"))
    with pytest.raises(UserError, match="lack batch_stats/batch_norm1"):
        pytorch.save_state_dict({"params": variables["params"]}, tmp_path / "w.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("network", NETWORKS)
def test_reference_starts_as_pytorch_does(network: str) -> None:
    recipe = recipes.get(network, "reference")
    assert recipe.initialization == "pytorch"
    net = training.make_model(recipe)
    params = net.init(jax.random.key(0), jnp.zeros((1, *original.SHAPES[network])))["params"]
    for layer, leaves in params.items():
        if layer.startswith("batch_norm"):
            np.testing.assert_array_equal(leaves["scale"], 1)
            np.testing.assert_array_equal(leaves["bias"], 0)
            continue
        bound = 1 / np.sqrt(np.prod(leaves["kernel"].shape[:-1]))
        for leaf in leaves.values():
            assert np.abs(leaf).max() <= bound
            if leaf.size > 500:  # uniform: standard deviation bound / sqrt(3), and near its ends
                assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.05)
                assert np.abs(leaf).max() > 0.98 * bound
        assert np.abs(leaves["bias"]).max() > 0


@pytest.mark.parametrize(("network", "millions"), [("mnist", "28.56"), ("cifar10", "289.00")])
def test_multiply_adds_at_batch_64(network: str, millions: str) -> None:
    images = jnp.zeros((64, *original.SHAPES[network]))
    count = models.multiply_adds(original.model(network), images)
    assert f"{count / 1e6:.2f}" == millions
    torchinfo = pytest.importorskip("torchinfo")
    from benchmarks.pytorch_networks import NETWORKS as PEERS

    size = (64, *np.roll(original.SHAPES[network], 1).tolist())
    printed = torchinfo.summary(PEERS[network](), size, verbose=0)
    assert count == printed.total_mult_adds
    parameters = {"mnist": 207_258, "cifar10": 554_890}[network]
    assert printed.total_params == parameters
    assert isinstance(original.model(network), nn.Module)
