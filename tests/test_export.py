import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
import safetensors
from jax import export as jax_export

from jaxcnn import (
    card,
    checkpoint,
    commands,
    environment,
    export,
    optimizers,
    pytorch,
    recipes,
    state,
    steps,
    trained,
    training,
)
from jaxcnn.data import Dataset
from jaxcnn.data.augment import make_normalize
from jaxcnn.errors import WriteError
from tests import original

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

FORMS = ["stablehlo", "safetensors", "onnx"]
NETWORKS = ["mnist", "cifar10"]
DOCS = Path(__file__).parent.parent / "docs" / "export.md"

# Runs the code of cards as whoever is handed a file would, where jaxcnn cannot be imported.
PROGRAM = """
import sys
sys.modules["jaxcnn"] = None
import numpy as np
for name in ("mnist", "cifar10"):
    exec(open(f"{name}.py").read(), there := {})
    pictures = np.load(f"{name}.npy")
    logits = {f"batch{n}": there["logits"](pictures[:n]) for n in (1, 5, 64)}
    np.savez(f"{name}.npz", **logits)
"""


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset, tiny_cifar10: Dataset
) -> dict[str, Path]:
    """A workdir for each network, with a checkpoint whose BatchNorm is far from a fresh one's."""
    made = {}
    for dataset in (tiny_mnist, tiny_cifar10):
        name = dataset.name
        recipe = recipes.get(name, "fast").replace(epochs=2)
        model = training.make_model(recipe)
        key = jax.random.key(0, impl="threefry2x32")
        tx = optimizers.make_optimizer(recipe, 100, key=key)
        init = functools.partial(state.init, model=model, tx=tx, input_shape=recipe.image_shape)
        blank = jax.eval_shape(init, key).replace(key=None)  # to compile the draw takes seconds
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), blank)
        variables = pytorch.load_state_dict(original.weights(name))
        tree = {"state": zeros.replace(**variables, key=key), "sums": steps.zero_train_metrics()}
        progress = {
            "history": [{"epoch": 1, "step": 5}, {"epoch": 2, "step": 10}],
            "test_correct": 60,
            "test_total": 70,
            "versions": environment.versions(),
            "device": "cpu (of a test)",
        }
        made[name] = tmp_path_factory.mktemp(name)
        run = training.identity(recipe, dataset, model=model)
        with checkpoint.opened(checkpoint.Policy(made[name] / "checkpoints"), run) as store:
            store.save(10, tree, progress, 60 / 70)
    return made


def code(text: str) -> str:
    """Returns the code of a card."""
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_process_without_our_code_gives_the_same_logits(
    form: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "safetensors":
        pytest.importorskip("torch")
    expected = {}
    for name, workdir in runs.items():
        path = tmp_path / f"{name}.{form}"
        commands.main(["export", str(workdir), "--format", form, "--out", str(path)])
        out = capsys.readouterr().out
        assert f"{path}: {path.stat().st_size / 2**20:.1f} MiB" in out
        assert f"{path}.md: the model card" in out
        (tmp_path / f"{name}.py").write_text(code(Path(f"{path}.md").read_text()))
        images, _ = zip(*original.batches(name), strict=True)
        pictures = np.concatenate(images)[:64]
        np.save(tmp_path / f"{name}.npy", pictures)
        network = trained.load(workdir)
        normalize = make_normalize(network.recipe.mean, network.recipe.std)
        predict = jax.jit(steps.make_predict(network.model, normalize=normalize))
        expected[name] = np.asarray(predict(network.variables, pictures))
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
def test_stablehlo_is_for_any_batch_and_every_platform(runs: dict[str, Path], name: str) -> None:
    network = trained.load(runs[name])
    exported = jax_export.deserialize(export.stablehlo(network))
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
def test_what_a_file_says_of_itself(form: str, runs: dict[str, Path], tmp_path: Path) -> None:
    network = trained.load(runs["cifar10"])
    path, _ = export.write(network, form, tmp_path / f"x.{form}")
    if form == "safetensors":
        with safetensors.safe_open(path, "np") as file:
            said = file.metadata()
            assert said.pop("format") == "pt"
            assert int(file.get_tensor("batch_norm1.num_batches_tracked")) == 0
    else:
        said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert (said["network"], said["dataset"], said["step"]) == ("cifar10", "cifar10 tiny", "10")
    assert json.loads(said["class_names"])[:2] == ["airplane", "automobile"]
    assert json.loads(said["mean"]) == [0.4914, 0.4822, 0.4465]
    assert json.loads(said["recipe"])["batch_size"] == network.recipe.batch_size
    assert "jaxcnn" in json.loads(said["versions"])


def test_the_card(runs: dict[str, Path], tmp_path: Path) -> None:
    network = trained.load(runs["mnist"])
    path, there = export.write(network, "safetensors", tmp_path / "x.safetensors")
    text = there.read_text()
    assert there == card.beside(path) == tmp_path / "x.safetensors.md"
    for part in (
        "MNIST network, recipe fast",
        "| 85.71% (60 of the 70 test images) |",
        "207,258 parameters",
        "mean 0.1307, std 0.3081",
        "| 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |",
        "10 steps, 2 of 2 epochs, on the training images of mnist tiny, seed 0",
        f"| learning_rate | {network.recipe.learning_rate} |",
        "CC BY-SA 3.0",
        f"jax {jax.__version__}",
    ):
        assert part in text
    assert "flatters" not in text
    text = card.render(network, "onnx", "x.onnx", "a file", chosen_by_test=True)
    assert "test images, by which this checkpoint was chosen, which flatters it" in text


def test_the_card_of_a_stand_in_or_of_an_unfinished_epoch(
    tmp_path: Path, tiny_mnist: Dataset
) -> None:
    dataset = dataclasses.replace(tiny_mnist, name="synthetic-mnist")
    policy = checkpoint.Policy(tmp_path / "checkpoints", checkpoint.Every(8, "steps"), keep=9)
    recipe = recipes.get("mnist", "fast").replace(epochs=1, batch_size=30)
    training.fit(recipe, dataset, checkpoints=policy)
    text = card.render(trained.load(tmp_path, "8"), "onnx", "x.onnx", "a file")
    assert "not measured at this step" in text
    assert "synthetic-mnist, a drawn stand-in: this network knows nothing about MNIST" in text
    assert "CC BY" not in text
    assert "datasets:" not in text


def test_a_file_that_is_there_is_replaced(runs: dict[str, Path], tmp_path: Path) -> None:
    network = trained.load(runs["mnist"])
    path, there = tmp_path / "x.onnx", tmp_path / "x.onnx.md"
    path.write_text("old")
    export.write(network, "onnx", path)
    content = path.read_bytes(), there.read_bytes()
    assert len(content[0]) > 800_000
    export.write(network, "onnx", path)
    assert (path.read_bytes(), there.read_bytes()) == content
    assert sorted(tmp_path.iterdir()) == [path, there]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--format onnx", "--out"),
        ("--out x.onnx", "--format"),
        ("--format pickle --out x.pickle", "pickle"),
        ("--format onnx --out x.safetensors", "x.safetensors does not end in .onnx"),
        ("--format onnx --out onnx", "does not end in .onnx"),
        ("--format onnx --out nowhere/x.onnx", "folder nowhere is not there"),
        ("--format onnx --out folder.onnx", "folder.onnx is a folder"),
        ("--format onnx --out card.onnx", "card.onnx.md is a folder"),
        ("--format onnx --out x.onnx --checkpoint 7", "no checkpoint '7'"),
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
        commands.main(["export", str(runs["mnist"]), *argv.split()])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert sorted(tmp_path.iterdir()) == folders


def test_without_onnx_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit) as caught:
        commands.main(["export", "/nowhere", "--format", "onnx", "--out", str(tmp_path / "x.onnx")])
    assert caught.value.code == 2
    assert "pip install 'jaxcnn[onnx]'" in capsys.readouterr().err


def test_nothing_is_left_of_a_write_that_fails(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = trained.load(runs["mnist"])
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(WriteError, match=r"x.onnx.*: the disk is full; give --out"):
        export.write(network, "onnx", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_documentation_has_the_code_of_the_cards(form: str, runs: dict[str, Path]) -> None:
    network = trained.load(runs["mnist"])
    assert code(card.render(network, form, f"mnist.{form}", "a file")) in DOCS.read_text()
