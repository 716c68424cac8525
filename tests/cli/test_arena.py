import json
from pathlib import Path
from typing import Any

import optax
import pytest

from experiments import arena as experiment
from jaxcnn.arena.files import load_entries, load_entry
from jaxcnn.arena.track import Track
from jaxcnn.cli.arena import load_tracks
from jaxcnn.cli.flags import DataFlags
from jaxcnn.cli.tools import main
from jaxcnn.data.dataset import Dataset
from tests.arena.test_files import forge
from tests.linear import Linear

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

SMALL = "--trials 2 --seeds 1 --validation 60 --no-compilation-cache".split()
SPACE = '[space]\nlearning_rate = [1e-3, 1.0, "log"]\n'
NAME = "tests.cli.test_arena:half_sgd"


def half_sgd(learning_rate: float) -> optax.GradientTransformation:
    """An optimizer of a user's."""
    return optax.sgd(learning_rate / 2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tiny_mnist: Dataset) -> None:
    """Few images, and a network that is quick to compile."""
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **options: tiny_mnist)
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: Linear())
    monkeypatch.setattr("jaxcnn.arena.speed.make_model", lambda *_: Linear())


def run(*argv: str, workdir: Path) -> None:
    main(["arena", *argv, *SMALL, "--workdir", str(workdir)])


def test_entries_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment.main(
        ["mnist-sprint", "--optimizers", "sgd", "lion", *SMALL, "--workdir", str(tmp_path)]
    )
    out = capsys.readouterr().out
    assert "tune sgd on mnist-sprint: 2 runs (0% of the arena done)" in out
    assert "| optimizer | test accuracy" in out
    assert "sgd" in (tmp_path / "leaderboard.html").read_text()
    entries = load_entries(tmp_path)
    assert [path.name for path in entries] == ["lion.json", "sgd.json"]
    speed = json.loads((tmp_path / "mnist-sprint/speed.json").read_text())
    assert set(speed["optimizers"]) == {"sgd", "lion"}
    run("mnist-sprint", "--optimizers", "lion", "sgd", workdir=tmp_path)
    assert load_entries(tmp_path) == entries


def test_an_own_optimizer_is_added_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.toml").write_text(SPACE)
    run("add", NAME, "--space", str(tmp_path / "space.toml"), workdir=tmp_path / "runs")
    path = tmp_path / f"runs/mnist-sprint/{NAME.replace(':', '.')}.json"
    assert f"| {NAME} |" in capsys.readouterr().out
    main(["arena", "verify", str(path), "--optimizer", NAME, "--no-compilation-cache"])
    assert capsys.readouterr().out.count(": identical, ") == 3
    final = load_entry(path)["final"]
    forge(path, final=[{**one, "correct": 0} for one in final])
    with pytest.raises(SystemExit) as caught:
        main(["arena", "verify", str(path), "--optimizer", NAME, "--runs", "9"])
    assert caught.value.code == 1
    assert "1 runs differ" in capsys.readouterr().out


@pytest.mark.slow
def test_an_optimizer_of_another_package_is_found_with_its_space_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rollfast", reason="pip install 'jaxcnn[arena]'")
    run("mnist-sprint", "--optimizers", "rollfast:prism", workdir=tmp_path)
    assert "optimizer: rollfast:prism of " in capsys.readouterr().out
    path = tmp_path / "mnist-sprint/rollfast.prism.json"
    entry = load_entry(path)
    assert entry["default"] == {"learning_rate": 5e-3, "weight_decay": 0.02}
    assert "--optimizers rollfast:prism" in entry["command"]
    main(["arena", "verify", str(path), "--optimizer", "rollfast:prism", "--no-compilation-cache"])
    assert capsys.readouterr().out.count(": identical, ") == 3


def test_a_missing_package_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxcnn.arena.spaces.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as caught:
        run("mnist-sprint", "--optimizers", "sgd", "rollfast:kron", workdir=tmp_path)
    assert caught.value.code == 2
    assert "rollfast: pip install 'jaxcnn[arena]'" in (err := capsys.readouterr().err)
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_workdirs_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sgd", "adam"):
        run("mnist-sprint", "--optimizers", name, workdir=tmp_path / name)
    folders = [str(tmp_path / name) for name in ("sgd", "adam")]
    main(["arena", "merge", *folders, "--workdir", str(tmp_path / "both")])
    assert len(load_entries(tmp_path / "both")) == 2
    assert "| adam |" in capsys.readouterr().out


def test_a_data_set_is_loaded_once(monkeypatch: pytest.MonkeyPatch, tiny_mnist: Dataset) -> None:
    from jaxcnn.arena.track import find_track

    asked: list[tuple[Any, ...]] = []

    def load(self: DataFlags, *names: Any) -> Dataset:
        asked.append(names[:2])
        return tiny_mnist

    monkeypatch.setattr(DataFlags, "load", load)
    tracks: list[Track] = [
        find_track("mnist"),
        find_track("mnist", "label-noise"),
        find_track("synthetic-cifar10"),
    ]
    loaded = load_tracks(tracks, DataFlags(), lambda line, style=None: None)
    assert asked == [("mnist", "mnist"), ("cifar10", "synthetic")]
    assert loaded[0][1] is tiny_mnist
    assert (loaded[1][1].train.labels != tiny_mnist.train.labels).any()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("imagenet", "TRACK takes mnist-sprint, mnist,"),
        ("mnist mnist", "TRACK takes at least one name, and each name once"),
        ("mnist --variants odd", "--variants takes all, or standard,"),
        ("mnist --optimizers sdg", "got 'sdg' (did you mean sgd?)"),
        ("mnist --optimizers dpsgd", "cannot be dpsgd: it needs a gradient for every image"),
        ("mnist --optimizers sgd sgd", "--optimizers takes at least one name"),
        ("mnist --optimizers a.b:c", "give it by jaxcnn arena add"),
        ("mnist --trials 0", "--trials takes a whole number from 1 to 10000"),
        ("mnist --seeds 0", "--seeds takes a whole number from 1 to 10000"),
        ("mnist --optimizers sgd --validation 400", "--validation takes 1 to 329"),
        ("mnist --chunk -1", "--chunk takes a whole number from 0"),
        ("mnist --mesh data=1", "--mesh"),
        ("add sgd --space x.toml", "takes module:factory, got 'sgd'"),
        ("add a.b:c --space nowhere.toml", "cannot read nowhere.toml"),
        ("merge nowhere", "nowhere holds no entries of the arena"),
        ("verify nowhere.json", "nowhere.json does not exist"),
        ("verify nowhere.json --runs 0", "--runs takes a whole number"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["arena", *argv.split()])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert named in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.json*"))
