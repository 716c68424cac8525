"""What README.md and docs/ say can be typed: every command is taken, and the code runs."""

import re
import shlex
from pathlib import Path

import pytest

from jaxcnn.cli import tools
from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.study import parse_study_flags
from jaxcnn.data.dataset import Dataset
from jaxcnn.networks import pytorch
from jaxcnn.networks.cnn import MnistCNN
from jaxcnn.recipes.recipe import NetworkName
from tests import conformance, original
from tests.conftest import REPOSITORY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page: Path, language: str = "") -> list[str]:
    """The contents of a page's blocks of code."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def command_lines(program: str) -> list[list[str]]:
    """The arguments of a program, wherever a page calls it."""
    calls = []
    for page in PAGES:
        for line in "\n".join(blocks(page)).replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if program in line else []
            if program in words:
                argv = words[words.index(program) + 1 :]
                # Variables of the shell, and commands within quotes for another one.
                calls.append([w.replace("$names", "sgd") for w in argv if w != "..."])
    return calls


@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_experiments(network: NetworkName) -> None:
    calls = command_lines(f"experiments/{network}.py")
    assert len(calls) >= 5
    for argv in calls:
        if "--help" not in argv:
            parse_flags(network, argv)


def test_studies() -> None:
    calls = command_lines("experiments/optimizers.py")
    assert len(calls) >= 8
    for argv in calls:
        parse_study_flags(argv)


def test_the_command_jaxcnn() -> None:
    calls = command_lines("jaxcnn")
    assert {argv[0] for argv in calls} == {"evaluate", "predict", "export", "demo", "doctor"}
    for argv in calls:
        tools.parse_command(argv)


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"https?:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_code_of_readme_runs(
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a small data set, for one epoch with a network that is quick to compile."""
    # The batch divides the 330 images: one program to compile rather than two.
    small = conformance.RECIPE.replace(epochs=1, batch_size=66, optimizer="sgd")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxcnn.load_data", lambda name: tiny_mnist)
    monkeypatch.setattr("jaxcnn.recipe", lambda network, name: small)
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda _: conformance.SmallCNN())
    network = MnistCNN
    weights = original.weights("mnist")
    pytorch.save_state_dict(pytorch.load_state_dict(weights), "mnist.safetensors")
    there = {"MyNetwork": conformance.SmallCNN}
    for block in blocks(REPOSITORY / "README.md", "python"):
        takes_weights = "load_state_dict" in block  # the real network's
        monkeypatch.setattr("jaxcnn.MnistCNN", network if takes_weights else conformance.SmallCNN)
        exec(block.replace('"mnist.pt"', '"mnist.safetensors"'), there)
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 70")  # of the test images
    assert there["result"].test_total == 70
    assert there["states"].step.tolist() == 8 * [1]
    assert there["logits"].shape == (64, 10)
