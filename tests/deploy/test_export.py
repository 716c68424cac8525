import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import onnx
import pytest
import safetensors
from jax import export as jax_export
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file

import jaxcnn
from jaxcnn.cli import tools
from jaxcnn.data.augment import make_normalize
from jaxcnn.deploy import export
from jaxcnn.errors import UserError, WriteError
from jaxcnn.train import steps
from jaxcnn.train.trained import Trained, load_trained
from tests import saved

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

FORMS = ["stablehlo", "safetensors", "onnx"]
NETWORKS = ["mnist", "cifar10"]

# Runs the code of cards as whoever is handed a file would, where jaxcnn cannot be imported.
PROGRAM = """
import sys
sys.modules["jaxcnn"] = None
import numpy as np
for name in ("mnist", "cifar10"):
    exec(open(f"{name}.py").read(), there := {})
    images = np.load(f"{name}.npy")
    logits = {f"batch{n}": there["logits"](images[:n]) for n in (1, 5, 64)}
    np.savez(f"{name}.npz", **logits)
"""


def code(text: str) -> str:
    """Returns the code of a card."""
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return found


class Session:
    """What a card asks of onnxruntime, by onnx's own evaluator."""

    def __init__(self, path: str, providers: list[str]) -> None:
        self.evaluator = ReferenceEvaluator(path)

    def run(self, names: list[str], inputs: Mapping[str, Any]) -> list[np.ndarray]:
        return self.evaluator.run(names, dict(inputs))


@pytest.mark.parametrize(
    ("form", "name"), [("stablehlo", "mnist"), ("onnx", "mnist"), ("onnx", "cifar10")]
)
def test_the_code_of_a_card_gives_the_same_logits(
    form: str,
    name: str,
    networks: dict[str, Trained],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = networks[name]
    _, there = export.write_export(network, form, tmp_path / f"x.{form}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "jaxcnn", None)
    runtime: Any = ModuleType("onnxruntime")
    runtime.InferenceSession = Session
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    namespace: dict[str, Any] = {}
    exec(code(there.read_text()), namespace)
    assert re.fullmatch(r"\[\d\]\n", capsys.readouterr().out)
    images = saved.images(name, 2)
    logits = namespace["logits"](images[:1])  # the batch of the card, which is compiled already
    assert (logits.dtype, logits.shape) == (np.float32, (1, 10))
    # Float32 leaves 6e-8 of what is summed: a thousand terms, most of them far below one.
    expected = saved.exact_logits(network.recipe, network.variables, images)
    np.testing.assert_allclose(logits, expected[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_safetensors_hold_the_original_s_weights(
    name: str, networks: dict[str, Trained], tmp_path: Path
) -> None:
    path, there = export.write_export(networks[name], "safetensors", tmp_path / "x.safetensors")
    found = load_file(path)
    expected = saved.weights(name)
    counters = {f"batch_norm{layer}.num_batches_tracked" for layer in range(1, 6)}
    assert found.keys() - counters == expected.keys()
    assert (counters <= found.keys()) == (name == "cifar10")
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values)
    source = code(there.read_text())
    compile(source, "card", "exec")
    assert 'load_file("x.safetensors")' in source
    for key in expected:
        assert f"self.{key.partition('.')[0]}" in source


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_process_without_our_code_gives_the_same_logits(
    form: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "safetensors":
        pytest.importorskip("torch", reason="pip install 'jaxcnn[torch]'")
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="pip install 'jaxcnn[slow]'")
    expected = {}
    for name, workdir in runs.items():
        path = tmp_path / f"{name}.{form}"
        tools.main(["export", str(workdir), "--format", form, "--out", str(path)])
        out = capsys.readouterr().out
        assert f"{path}: {path.stat().st_size / 2**20:.1f} MiB" in out
        assert f"{path}.md: the model card" in out
        (tmp_path / f"{name}.py").write_text(code(Path(f"{path}.md").read_text()))
        images = saved.images(name, 64)
        np.save(tmp_path / f"{name}.npy", images)
        network = load_trained(workdir)
        normalize = make_normalize(network.recipe.mean, network.recipe.std)
        predict = jax.jit(steps.make_predict(network.model, normalize=normalize))
        expected[name] = np.asarray(predict(network.variables, images))
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(\[\d\]\n){2}", done.stdout)
    for name, logits in expected.items():
        for batch, found in np.load(tmp_path / f"{name}.npz").items():
            count = int(batch.removeprefix("batch"))
            assert (found.dtype, found.shape) == (np.float32, (count, 10))
            np.testing.assert_allclose(found, logits[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_stablehlo_is_for_any_batch_and_every_platform(
    networks: dict[str, Trained], name: str
) -> None:
    network = networks[name]
    exported = jax_export.deserialize(export.to_stablehlo(network))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    height, width, channels = network.recipe.image_shape
    avals = (*exported.in_avals, *exported.out_avals)
    assert [f"{aval.dtype}[{','.join(map(str, aval.shape))}]" for aval in avals] == [
        f"uint8[b,{height},{width},{channels}]",
        "float32[b,10]",
    ]
    text = exported.mlir_module()
    assert "stablehlo.convolution" in text  # XLA's own, where it is the faster one
    assert "HIGHEST" in text
    assert "DEFAULT" not in text


@pytest.mark.parametrize("form", ["safetensors", "onnx"])
def test_what_a_file_says_of_itself(
    form: str, networks: dict[str, Trained], tmp_path: Path
) -> None:
    network = networks["cifar10"]
    path, _ = export.write_export(network, form, tmp_path / f"x.{form}")
    if form == "safetensors":
        with safetensors.safe_open(path, "np") as file:
            said = file.metadata()
            assert said.pop("format") == "pt"
            assert int(file.get_tensor("batch_norm1.num_batches_tracked")) == 0
    else:
        said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (said["network"], said["dataset"], said["step"]) == ("cifar10", "cifar10 tiny", "21")
    assert json.loads(said["class_names"])[:2] == ["airplane", "automobile"]
    assert json.loads(said["mean"]) == [0.4914, 0.4822, 0.4465]
    assert json.loads(said["recipe"])["batch_size"] == network.recipe.batch_size
    assert "jaxcnn" in json.loads(said["versions"])


def test_a_file_that_is_there_is_replaced(networks: dict[str, Trained], tmp_path: Path) -> None:
    network = networks["mnist"]
    path, there = tmp_path / "x.onnx", tmp_path / "x.onnx.md"
    path.write_text("old")
    export.write_export(network, "onnx", path)
    content = path.read_bytes(), there.read_bytes()
    assert len(content[0]) > 800_000
    export.write_export(network, "onnx", path)
    assert (path.read_bytes(), there.read_bytes()) == content
    assert sorted(tmp_path.iterdir()) == [path, there]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--format onnx", "--out"),
        ("--out x.onnx", "--format"),
        ("--format pickle --out x.pickle", "pickle"),
    ],
)
def test_a_malformed_command_line(
    argv: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The message is tyro's, of several lines."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        tools.main(["export", "/nowhere", *argv.split()])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--format onnx --out x.safetensors", "x.safetensors does not end in .onnx"),
        ("--format onnx --out onnx", "does not end in .onnx"),
        ("--format onnx --out nowhere/x.onnx", "folder nowhere is not there"),
        ("--format onnx --out folder.onnx", "folder.onnx is a folder"),
        ("--format onnx --out card.onnx", "card.onnx.md is a folder"),
        ("--format onnx --out x.onnx --checkpoint 8", "no checkpoint '8'"),
    ],
)
def test_mistakes(
    argv: str,
    said: str,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "card.onnx.md", tmp_path / "folder.onnx"]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(SystemExit) as caught:
        tools.main(["export", str(runs["mnist"]), *argv.split()])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert sorted(tmp_path.iterdir()) == folders


def test_the_description_of_a_form() -> None:
    ours = f"jaxcnn {jaxcnn.__version__}"
    assert export.describe_export("stablehlo") == (
        f"StableHLO for cpu, cuda, tpu, by jax.export of jax {jax.__version__} and {ours}"
    )
    assert (
        export.describe_export("safetensors") == f"safetensors {safetensors.__version__}, by {ours}"
    )
    expected = f"ONNX of opset 17, by {ours} with onnx {onnx.__version__}"
    assert export.describe_export("onnx") == expected


def test_an_unknown_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes stablehlo, safetensors, onnx, got 'pickle'"):
        export.check_export("pickle", tmp_path / "x.pickle")


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert export.check_export("stablehlo", "~/x.stablehlo") == tmp_path / "x.stablehlo"


def test_without_onnx_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit) as caught:
        tools.main(["export", "/nowhere", "--format", "onnx", "--out", str(tmp_path / "x.onnx")])
    assert caught.value.code == 2
    assert "pip install 'jaxcnn[onnx]'" in capsys.readouterr().err


def test_nothing_is_left_of_a_write_that_fails(
    networks: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(WriteError, match=r"x.onnx.*: the disk is full; give --out"):
        export.write_export(networks["mnist"], "onnx", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []
