import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest

from jaxcnn.arena.description import Protocol
from jaxcnn.arena.entry import count_images
from jaxcnn.arena.files import load_entry
from jaxcnn.arena.spaces import RATE, Range, Space, hyperparameters
from jaxcnn.arena.track import find_track
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices.mesh import make_mesh
from jaxcnn.errors import UserError
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.study.study import StudyObserver, hold_out
from jaxcnn.train import ensemble
from jaxcnn.train.members import grid
from tests.arena.conftest import PROTOCOL, TRACK, compute, space_of
from tests.several import end, start

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

SGD = Path("mnist-sprint/sgd.json")


class StoppedError(Exception):
    """What kills a run in these tests."""


class Counter(StudyObserver):
    """Counts images, and raises once there are as many as it is told."""

    def __init__(self, most: float = float("inf")) -> None:
        self.most, self.images, self.further, self.lines = most, 0, 0, list[str]()

    def runs(self, phase: str, optimizer: str, count: int) -> None:
        self.lines.append(f"{phase} {optimizer} {count}")

    def more(self, images: int) -> None:
        self.further += images

    def advance(self, images: int) -> None:
        self.images += images
        if self.images >= self.most:
            raise StoppedError


def own(learning_rate: float, momentum: float = 0.9) -> optax.GradientTransformation:
    """An optimizer of a user's."""
    return optax.sgd(learning_rate, momentum)


def test_an_entry_has_what_the_protocol_says(computed: Path, tiny_mnist: Dataset) -> None:
    entry = load_entry(computed / SGD)
    space = space_of("sgd")
    names = ("protocol", "track", "variant", "optimizer", "members_at_once")
    assert [entry[name] for name in names] == [1, "mnist-sprint", "standard", "sgd", 1]
    settings = entry["settings"]
    names = ("dataset", "network", "epochs", "batch_size", "steps", "validation", "trials", "seeds")
    assert [settings[name] for name in names] == ["mnist", "mnist", 1, 30, 11, 60, 4, 2]
    assert entry["space"] == {name: one.as_list() for name, one in space.ranges.items()}
    command = "jaxcnn arena mnist-sprint --optimizers sgd --trials 4 --seeds 2 --validation 60"
    assert entry["command"] == command
    assert len(entry["trials"]) == 4 + len(entry["extended"])
    assert [run["seed"] for run in entry["final"]] == [1, 2]
    assert [run["seed"] for run in entry["untuned"]] == [1, 2]
    totals = {run["total"] for run in entry["trials"]}, {run["total"] for run in entry["final"]}
    assert totals == ({60}, {70})
    for run in [*entry["trials"], *entry["final"], *entry["untuned"]]:
        assert len(run["progress"]) == 32
    assert "second" not in (computed / SGD).read_text()
    assert sorted(path.name for path in (computed / SGD).parent.glob("[!.]*")) == [
        "adamw.json",
        "sgd.json",
        "speed.json",
    ]


def test_runs_are_those_of_an_ensemble(computed: Path, tiny_mnist: Dataset) -> None:
    entry = load_entry(computed / SGD)
    recipe, best = TRACK.for_optimizer("sgd"), entry["trials"][entry["best"]]
    tuning, held_out = hold_out(tiny_mnist, 60)
    for run, values, data, split in (
        (best, best["values"], tuning, held_out),
        (entry["final"][1], best["values"], tiny_mnist, tiny_mnist.test),
        (entry["untuned"][0], entry["default"], tiny_mnist, tiny_mnist.test),
    ):
        columns = {name: [value] for name, value in hyperparameters(values).items()}
        members = grid([run["seed"]], **columns)
        result = ensemble.fit_many(recipe, data, members, evaluate_on=split, log_every=1)
        assert run["correct"] == result.correct[0]
        mean = np.mean(run["progress"])  # the windows are equal
        assert mean == pytest.approx(result.log["loss"].mean(), rel=1e-5)


def test_killed_at_any_moment_it_gives_the_same_bytes(
    computed: Path, tiny_mnist: Dataset, tmp_path: Path
) -> None:
    everything = Counter()
    compute(tiny_mnist, tmp_path / "whole", observer=everything)
    wanted = (computed / SGD).read_bytes()
    assert (tmp_path / "whole" / SGD).read_bytes() == wanted
    generator = random.Random(0)
    journal = (tmp_path / "cut" / SGD).with_suffix(".jsonl")
    for share in sorted(generator.uniform(0.1, 0.9) for _ in range(3)):
        with pytest.raises(StoppedError):
            compute(tiny_mnist, tmp_path / "cut", observer=Counter(share * everything.images))
        with journal.open("ab") as file:  # killed while it wrote a line
            file.write(b'{"phase": "fin')
    resumed = Counter()
    compute(tiny_mnist, tmp_path / "cut", observer=resumed)
    assert (tmp_path / "cut" / SGD).read_bytes() == wanted
    assert not journal.exists()
    assert resumed.images == everything.images  # those of before count too


def test_an_entry_that_has_ended_is_not_computed_again(
    computed: Path, tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", None)
    counter = Counter()
    entry = compute(tiny_mnist, computed, observer=counter)
    assert entry == load_entry(computed / SGD)
    assert counter.images == count_images(TRACK, tiny_mnist, PROTOCOL) + counter.further


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"protocol": Protocol(5, 2, 60)}, "command, trials"),
        ({"space": space_of("sgd", learning_rate=(1e-3, 1e-1))}, "space"),
        ({"chunk": 2}, "members_at_once"),
    ],
)
def test_other_settings_are_refused(
    options: dict[str, Any], named: str, computed: Path, tiny_mnist: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"sgd.json is another entry \(its {named} differs"):
        compute(tiny_mnist, computed, **options)
    with pytest.raises(StoppedError):
        compute(tiny_mnist, tmp_path, observer=Counter(100))
    with pytest.raises(UserError, match=rf"has runs of another entry \(its {named} differs"):
        compute(tiny_mnist, tmp_path, **options)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_several_runs_at_once_on_several_devices(tiny_mnist: Dataset, tmp_path: Path) -> None:
    """Three at once do not divide four trials: the last chunk is filled up."""
    mesh = make_mesh({"ensemble": 1})
    entries = [
        compute(tiny_mnist, tmp_path / str(chunk), chunk=chunk, mesh=mesh) for chunk in (1, 3)
    ]
    one, three = ([run["correct"] for run in entry["trials"]] for entry in entries)
    # Programs of other sizes round differently, by far less than an image of 60 each.
    assert np.abs(np.subtract(one, three)).max() <= 2
    assert [entry["members_at_once"] for entry in entries] == [1, 3]


def test_an_edge_is_extended_once(tiny_mnist: Dataset, tmp_path: Path) -> None:
    low = space_of("sgd", learning_rate=(1e-7, 1e-4))
    counter = Counter()
    entry = compute(tiny_mnist, tmp_path, space=low, observer=counter)
    assert entry["extended"] == [RATE]
    assert len(entry["trials"]) == 5
    beyond = entry["trials"][4]["values"][RATE]
    assert 1e-4 < beyond <= 1e-4 * 1e3**0.5
    assert entry["best"] == 4
    assert entry["space"][RATE] == [1e-7, 1e-4, "log"]
    assert counter.further == 270
    assert counter.images == count_images(TRACK, tiny_mnist, PROTOCOL) + 270
    assert [line.split()[0] for line in counter.lines] == ["tune", "tune", "final"]
    position = Range(1e-7, 1e-4 * 1e3**0.5).position(beyond)
    assert entry["at_edge"] == ([RATE] if position > 7 / 8 else [])


def test_diverged_runs_have_failed(tiny_mnist: Dataset, tmp_path: Path) -> None:
    entry = compute(tiny_mnist, tmp_path, space=space_of("sgd", learning_rate=(1e-2, 1e36)))
    failed = [trial for trial in entry["trials"] if trial["diverged_at"]]
    assert failed
    assert len(failed) < len(entry["trials"])
    assert not entry["trials"][entry["best"]]["diverged_at"]
    for trial in failed:
        assert None in trial["progress"]
        assert trial["loss"] is None
    assert not any(run["diverged_at"] for run in entry["final"])


def test_an_optimizer_of_ones_own(tiny_mnist: Dataset, tmp_path: Path) -> None:
    name = "tests.arena.test_entry:own"
    space = Space("", "", {RATE: Range(1e-3, 1.0), "one_minus_momentum": Range(0.05, 0.5)}, {})
    space = dataclasses.replace(space, default={RATE: 0.05, "one_minus_momentum": 0.1})
    with pytest.raises(UserError, match="runs only if you name it"):
        compute(tiny_mnist, tmp_path, name, space)
    optimizer_defaults.trust(name)
    entry = compute(tiny_mnist, tmp_path, name, space)
    assert (tmp_path / "mnist-sprint/tests.arena.test_entry.own.json").exists()
    assert len(entry["optimizer_code"]) == 64
    assert entry["command"].startswith(f"jaxcnn arena add {name} --space SPACE.toml --tracks mnist")


def test_a_variant_is_beside_its_track(tiny_mnist: Dataset, tmp_path: Path) -> None:
    noise = find_track("mnist-sprint", "label-noise")
    noise = dataclasses.replace(noise, recipe=TRACK.recipe)
    track, data = noise.prepare(tiny_mnist)
    entry = compute(data, tmp_path, track=track)
    assert (tmp_path / "mnist-sprint-label-noise/sgd.json").exists()
    assert (entry["track"], entry["variant"]) == ("mnist-sprint", "label-noise")
    assert "--variants label-noise" in entry["command"]


def test_too_many_held_out_images(tiny_mnist: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--validation takes 1 to 329"):
        compute(tiny_mnist, tmp_path, protocol=Protocol(4, 2, 330))
    assert not list(tmp_path.iterdir())


def test_a_damaged_journal_is_named(tiny_mnist: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        compute(tiny_mnist, tmp_path, observer=Counter(600))
    journal = (tmp_path / SGD).with_suffix(".jsonl")
    lines = journal.read_text().splitlines()
    assert len(lines) >= 2
    chunk = json.loads(lines[1])
    chunk["runs"][0]["correct"] += 1
    journal.write_text("\n".join([lines[0], json.dumps(chunk), *lines[2:], ""]))
    with pytest.raises(UserError, match=r"sgd.jsonl, line 2, is no chunk of runs, or was altered"):
        compute(tiny_mnist, tmp_path)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_several_processes_compute_the_same_entry(tmp_path: Path) -> None:
    """Trials do not divide over two devices: one of them repeats a run."""
    for count in (1, 2):
        for status, said in end(start(tmp_path / str(count), count, 1, "arena")):
            assert status == 0, said
    one, two = (load_entry(tmp_path / str(count) / SGD) for count in (1, 2))
    assert one == two | {"device": one["device"]}


def test_a_journal_that_was_left_is_removed(
    computed: Path, tiny_mnist: Dataset, tmp_path: Path
) -> None:
    """Killed between the last two steps of an entry."""
    shutil.copytree(computed, tmp_path, dirs_exist_ok=True)
    journal = (tmp_path / SGD).with_suffix(".jsonl")
    journal.write_text("left")
    compute(tiny_mnist, tmp_path)
    assert not journal.exists()
