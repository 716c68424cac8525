import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.arena.files import load_entry
from jaxcnn.arena.verify import tolerance, verify
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from tests.arena.conftest import TRACK
from tests.arena.test_files import SGD, forge

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture
def path(computed: Path, tmp_path: Path) -> Path:
    """A copy of an entry."""
    return Path(shutil.copy(computed / SGD, tmp_path / "sgd.json"))


def test_a_sound_entry_is_identical(path: Path, tiny_mnist: Dataset) -> None:
    findings, elsewhere = verify(load_entry(path), TRACK, tiny_mnist, runs=3)
    assert elsewhere == []
    assert [one.verdict for one in findings] == ["identical"] * 3
    other, _ = verify(load_entry(path), TRACK, tiny_mnist, runs=1, seed=5)
    assert {one.run for one in other} - {one.run for one in findings}


def test_a_forged_result_is_noticed(path: Path, tiny_mnist: Dataset) -> None:
    """Although its digest was made to fit."""
    entry = load_entry(path)
    forge(path, final=[{**run, "correct": 0} for run in entry["final"]])
    findings, _ = verify(load_entry(path), TRACK, tiny_mnist, runs=100)
    different = [one.run for one in findings if one.verdict != "identical"]
    assert different == ["final, seed 1", "final, seed 2"]
    assert len(findings) == len(entry["trials"]) + 4


@pytest.mark.parametrize("name", ["best", "trials", "extended", "at_edge", "final"])
def test_what_does_not_follow_the_protocol_is_noticed(
    name: str, path: Path, tiny_mnist: Dataset
) -> None:
    entry = load_entry(path)
    trial = entry["trials"][0]
    changes: dict[str, Any] = {
        "best": (entry["best"] + 1) % 4,
        "trials": [{**trial, "values": trial["values"] | {"learning_rate": 0.011}}],
        "extended": [] if entry["extended"] else ["learning_rate"],
        "at_edge": [] if entry["at_edge"] else ["learning_rate"],
        "final": [{**run, "seed": 7} for run in entry["final"]],
    }
    changes["trials"] += entry["trials"][1:]
    forge(path, **{name: changes[name]})
    with pytest.raises(UserError, match=rf"does not follow the protocol \(its {name}\)"):
        verify(load_entry(path), TRACK, tiny_mnist)


def test_elsewhere_rounding_is_tolerated(path: Path, tiny_mnist: Dataset) -> None:
    entry = load_entry(path)
    near = [{**run, "correct": run["correct"] - 1} for run in entry["final"]]
    far = [{**run, "correct": 0} for run in entry["untuned"]]
    forge(path, device="another", code="other", final=near, untuned=far)
    findings, elsewhere = verify(load_entry(path), TRACK, tiny_mnist, runs=100)
    assert elsewhere == ["code", "device"]
    verdicts = [one.verdict for one in findings]
    expected = ["identical"] * len(entry["trials"])
    assert verdicts == [*expected, *2 * ["within the tolerance"], *2 * ["DIFFERENT"]]


def test_another_space_or_other_data_are_refused(path: Path, tiny_mnist: Dataset) -> None:
    labels = tiny_mnist.train.labels.copy()
    labels[0] = (labels[0] + 1) % 10
    other = Dataset("mnist", "tiny", Split(tiny_mnist.train.images, labels), tiny_mnist.test, ())
    with pytest.raises(UserError, match="cannot be repeated here: its dataset_digest differs"):
        verify(load_entry(path), TRACK, other)
    forge(path, space={"learning_rate": [0.01, 0.1, "log"]})
    with pytest.raises(UserError, match="cannot be repeated here: its space differs"):
        verify(load_entry(path), TRACK, tiny_mnist)


def test_the_tolerance() -> None:
    assert tolerance(0.99, 10_000) == 0.01
    assert tolerance(0.5, 100) == pytest.approx(0.2828, abs=1e-4)
