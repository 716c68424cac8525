import io
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from tests import original
from tests.networks.test_pytorch import NETWORKS, PT, needs


@pytest.mark.parametrize("suffix", [".safetensors", PT, ".npz"])
def test_a_bad_file_is_named(tmp_path: Path, suffix: str) -> None:
    if suffix == ".pt":
        needs("torch")
    path = tmp_path / f"w{suffix}"
    with pytest.raises(UserError, match=path.name):
        pytorch.load_state_dict(path)
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match=path.name):
        pytorch.load_state_dict(path)


class Torch(ModuleType):
    """PyTorch's part in reading and writing files, as far as it is called."""

    def __init__(self, content: Any = None) -> None:
        super().__init__("torch")
        self.content = content

    def load(self, path: Path, *, map_location: str, weights_only: bool) -> Any:
        assert (path.suffix, map_location, weights_only) == (".pt", "cpu", True)
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def from_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def save(self, content: dict[str, np.ndarray], file: io.BytesIO) -> None:
        file.write(",".join(content).encode())


def test_torch_reads_and_writes_pt_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = tmp_path / "w.pt", original.weights("mnist")
    monkeypatch.setitem(sys.modules, "torch", Torch(weights))
    variables = pytorch.load_state_dict(weights)
    pytorch.save_state_dict(variables, path)
    assert path.read_text() == ",".join(pytorch.to_state_dict(variables))
    jax.tree.map(np.testing.assert_array_equal, pytorch.load_state_dict(path), variables)
    for content, said in (
        ([1, 2], "holds no state dict"),
        (ValueError("no"), r"is no complete \.pt file of plain tensors \(ValueError\)"),
    ):
        monkeypatch.setitem(sys.modules, "torch", Torch(content))
        with pytest.raises(UserError, match=rf"w\.pt {said}"):
            pytorch.load_state_dict(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"w\.safetensors is not there: give the path of a \.pt or"):
        pytorch.load_state_dict(tmp_path / "w.safetensors")


@pytest.mark.slow
def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    torch = needs("torch")

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"w\.pt is no complete"):
        pytorch.load_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_safetensors_work_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    variables = pytorch.load_state_dict(original.weights("mnist"))
    pytorch.save_state_dict(variables, tmp_path / "w.safetensors")
    pytorch.load_state_dict(tmp_path / "w.safetensors")
    for function in (
        lambda path: pytorch.save_state_dict(variables, path),
        pytorch.load_state_dict,
    ):
        (tmp_path / "w.pt").write_bytes(b"")
        with pytest.raises(UserError, match=r"w\.pt needs PyTorch: pip install 'jaxcnn\[torch\]'"):
            function(tmp_path / "w.pt")
        assert (tmp_path / "w.pt").read_bytes() == b""


@pytest.mark.slow
def test_safetensors_work_in_a_process_without_torch(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["torch"] = None
from jaxcnn import errors
from jaxcnn.networks import pytorch
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
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("network", NETWORKS)
def test_bfloat16_in_a_file(tmp_path: Path, network: str) -> None:
    from safetensors.flax import save_file

    tensors = {k: jnp.asarray(v, jnp.bfloat16) for k, v in original.weights(network).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    found = pytorch.load_state_dict(tmp_path / "x.safetensors")
    expected = pytorch.load_state_dict(tensors)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
