"""Networks that the command line names."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest
from rich.console import Console

from jaxcnn.cli import tools
from jaxcnn.cli.network import check_network, named_network
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from tests.conformance import RECIPE
from tests.runs import ARGV, QUICK, load_tiny, start

pytestmark = pytest.mark.loose_promotion

CODE = """
import flax.linen as nn

class Linear(nn.Module):
    classes: int = 10

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(self.classes)(images.reshape(len(images), -1))

class Deaf(nn.Module):
    def __call__(self, images):
        return images

def factory(**options):
    return Linear(**options)

nothing = 3
"""
NAME = "network_of_a_test"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    (tmp_path / f"{NAME}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return NAME


def test_a_class_or_a_factory(module: str) -> None:
    for name in ("Linear", "factory"):
        model: Any = named_network(f"{module}:{name}", ["classes=10"])
        assert isinstance(model, nn.Module)
        assert model.classes == 10
    assert named_network("", ()) is None


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("", ["classes=3"], "--network-args takes the arguments of a --network"),
        ("Linear", [], "--network takes module:Class, got 'Linear'"),
        ("nowhere_at_all:Linear", [], "cannot import nowhere_at_all .ModuleNotFoundError"),
        (f"{NAME}:Missing", [], "has no class Missing"),
        (f"{NAME}:nothing", [], "has no class nothing"),
        (f"{NAME}:Linear", ["depth=3"], "cannot be made .TypeError.*change --network-args"),
        (f"{NAME}:Linear", ["classes=3"], r"returns \[1, 3\] for one image"),
        (f"{NAME}:Deaf", [], "returns|cannot be applied to images"),
        ("builtins:dict", [], "makes a dict"),
    ],
)
def test_what_is_refused(
    module: str, name: str, args: list[str], said: str, tiny_mnist: Dataset
) -> None:
    def check() -> None:
        model: Any = named_network(name, args)
        check_network(name, model, RECIPE, tiny_mnist)

    with pytest.raises(UserError, match=said) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_a_run_and_its_score(
    module: str, tmp_path: Path, tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", load_tiny(tiny_mnist, []))
    network = ["--network", f"{module}:Linear"]
    ended = start(*ARGV, tmp_path / "run", *network, *QUICK[:1])
    assert (ended.status, ended.err) == (0, "")
    assert f"no report for {module}:Linear" in ended.out
    (line,) = [line for line in ended.out.splitlines() if " correct of " in line]

    def evaluate(*argv: str) -> str:
        console = Console(record=True, width=200, quiet=False)
        tools.parse_command(["evaluate", str(tmp_path / "run"), *argv]).run(console)
        return console.export_text()

    assert line in evaluate(*network)
    with pytest.raises(UserError, match="jaxcnn evaluate --network"):
        evaluate()
    with pytest.raises(UserError, match=r"network Linear with .*10.*, not with .*11"):
        evaluate(*network, "--network-args", "classes=11")
