import dataclasses
import json
import linecache
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from jaxcnn import ensemble, processes, recipes, study
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from tests.conftest import REPOSITORY
from tests.several import end, start

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

RECIPE = recipes.get("mnist", "fast").replace(epochs=2, batch_size=30, augment="none")
STUDY = study.Study(
    RECIPE,
    {"sgd": (0.02, 1e30), "adamw": (0.004,)},
    tune_seeds=2,
    seeds=3,
    validation=60,
    target=0.5,
)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset
) -> tuple[Path, list[study.Run]]:
    """A study from beginning to end."""
    workdir = tmp_path_factory.mktemp("study")
    return workdir, study.run(STUDY, tiny_mnist, workdir)


def test_every_run_is_there_once(whole: tuple[Path, list[study.Run]]) -> None:
    _, runs = whole
    tune = [run for run in runs if run.phase == "tune"]
    assert {(run.optimizer, run.learning_rate, run.seed) for run in tune} == {
        (name, rate, seed)
        for name, rates in STUDY.learning_rates.items()
        for rate in rates
        for seed in (0, 1)
    }
    final = [(run.optimizer, run.learning_rate, run.seed) for run in runs if run.phase == "final"]
    assert final == [("sgd", 0.02, seed) for seed in range(3)] + [
        ("adamw", 0.004, seed) for seed in range(3)
    ]
    assert len(runs) == 12


def test_a_diverged_run_is_marked_alone(whole: tuple[Path, list[study.Run]]) -> None:
    _, runs = whole
    for run in runs:
        diverged = run.learning_rate == 1e30
        assert (run.diverged_at > 0) == diverged
        assert (None in run.train_loss) == diverged
    assert study.best_rate(STUDY, runs, "sgd") == 0.02


def test_tuned_on_held_out_images_and_tested_once(
    whole: tuple[Path, list[study.Run]], tiny_mnist: Dataset
) -> None:
    _, runs = whole
    tuning, held_out = study.hold_out(tiny_mnist, 60)
    assert (len(tuning.train), len(held_out)) == (270, 60)
    everything = np.concatenate([tuning.train.images, held_out.images])
    assert len(np.unique(everything.reshape(330, -1), axis=0)) == 330
    for run in runs:
        tuned = run.phase == "tune"
        assert run.total == (60 if tuned else 70)
        assert run.steps_an_epoch == (9 if tuned else 11)
        assert len(run.validation_accuracy) == (2 if tuned else 0)
    single = ensemble.fit(
        STUDY.for_optimizer("adamw"), tiny_mnist, ensemble.grid([2], learning_rate=[0.004])
    )
    assert runs[-1].correct == single.correct[0]


@pytest.mark.parametrize("kept", [1, 7, 12])
def test_a_stopped_study_goes_on(
    kept: int,
    whole: tuple[Path, list[study.Run]],
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while it wrote a line: that run is done again, none of those before."""
    workdir, runs = whole
    lines = (workdir / study.RUNS).read_bytes().splitlines(keepends=True)
    (tmp_path / study.SPECIFICATION).write_bytes((workdir / study.SPECIFICATION).read_bytes())
    cut = lines[kept][:20] if kept < 12 else b""
    (tmp_path / study.RUNS).write_bytes(b"".join(lines[:kept]) + cut)
    trained: list[int] = []
    chunks = ensemble.chunks

    def counting(recipe: object, dataset: object, members: object, **options: object) -> object:
        trained.append(len(members))
        return chunks(recipe, dataset, members, **options)

    monkeypatch.setattr(ensemble, "chunks", counting)
    assert study.run(STUDY, tiny_mnist, tmp_path) == runs
    assert sum(trained) == 12 - kept
    assert (tmp_path / study.RUNS).read_bytes() == b"".join(lines)


def test_a_killed_study_goes_on(whole: tuple[Path, list[study.Run]], tmp_path: Path) -> None:
    """By SIGKILL, in the middle of a run, with another process then."""
    _, runs = whole
    code = (
        "from tests.conftest import tiny_mnist; from tests.test_study import STUDY; "
        "from jaxcnn import study; import pathlib, sys; "
        "study.run(STUDY, tiny_mnist.__wrapped__(), pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    first = subprocess.Popen(command, cwd=REPOSITORY)
    runs_file = tmp_path / study.RUNS
    while not (runs_file.exists() and runs_file.stat().st_size):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = study.load_runs(tmp_path / study.RUNS)
    assert 1 <= len(before) < len(runs)
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert study.load_runs(tmp_path / study.RUNS) == runs


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Also if one is killed on the way, and both are started again."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(one, 1, 2, "study")
    running = start(two, 2, 1, "study", "kill", "1")
    ((status, text), _), whole = end(running), end(alone)
    assert status in (1, 2)
    assert text.strip().splitlines()[-1].endswith(f"error: {processes.LOST}")
    assert whole == [(0, "")]
    runs = study.load_runs(one / study.RUNS)
    before = study.load_runs(two / study.RUNS)
    assert 1 <= len(before) < len(runs) == 6
    for status, text in end(start(two, 2, 1, "study")):
        assert status == 0, text
    for name in (study.RUNS, study.SPECIFICATION):
        assert (two / name).read_bytes() == (one / name).read_bytes()


def test_another_study_is_refused(whole: tuple[Path, list[study.Run]], tiny_mnist: Dataset) -> None:
    other = dataclasses.replace(STUDY, seeds=4, target=0.6)
    with pytest.raises(UserError, match=r"holds another study \(its seeds, target differs\)"):
        study.run(other, tiny_mnist, whole[0])


def test_damage_is_named(tiny_mnist: Dataset, tmp_path: Path) -> None:
    path = tmp_path / study.RUNS
    for line in ("nonsense", "[]", "{}", '{"phase": "tune"}', "1"):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=r"runs.jsonl, line 1, is no run of a study"):
            study.load_runs(path)
    path.unlink()


def test_runs_of_an_unknown_study_are_refused(
    whole: tuple[Path, list[study.Run]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    (tmp_path / study.RUNS).write_bytes((whole[0] / study.RUNS).read_bytes())
    for content in (None, "["):
        if content:
            (tmp_path / study.SPECIFICATION).write_text(content)
        with pytest.raises(UserError, match=r"study.json cannot be read"):
            study.run(STUDY, tiny_mnist, tmp_path)


def test_a_study_without_runs_can_be_changed(tiny_mnist: Dataset, tmp_path: Path) -> None:
    (tmp_path / study.SPECIFICATION).write_text("{}")
    bad = dataclasses.replace(STUDY, recipe=RECIPE.replace(batch_size=300))
    with pytest.raises(UserError, match="batch_size 300 is larger"):
        study.run(bad, tiny_mnist, tmp_path)
    assert json.loads((tmp_path / study.SPECIFICATION).read_text())["batch_size"] == 300


def test_changed_code_of_one_s_own_is_another_study(
    tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "mine_for_study.py"
    code = "import optax\ndef make(learning_rate):\n    return optax.sgd(learning_rate)\n"
    module.write_text(code)
    rates = {"mine_for_study:make": (0.01,)}
    small = study.Study(RECIPE.replace(epochs=1), rates, tune_seeds=1, seeds=1, validation=60)
    study.run(small, tiny_mnist, tmp_path / "run")
    module.write_text(code + "# changed\n")
    linecache.checkcache()
    with pytest.raises(UserError, match="its code of mine_for_study:make differs"):
        study.run(small, tiny_mnist, tmp_path / "run")


def test_a_workdir_in_use_is_refused(tiny_mnist: Dataset, tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="is in use by another process"),
    ):
        study.run(STUDY, tiny_mnist, tmp_path)


def test_too_many_held_out(tiny_mnist: Dataset, tmp_path: Path) -> None:
    workdir = tmp_path / "new"
    with pytest.raises(UserError, match="--validation takes 1 to 329 of the training images"):
        study.run(dataclasses.replace(STUDY, validation=330), tiny_mnist, workdir)
    assert not workdir.exists()


def test_files_are_plain_json(whole: tuple[Path, list[study.Run]]) -> None:
    workdir, runs = whole
    assert study.load_runs(workdir / study.RUNS) == runs
    specification = json.loads((workdir / study.SPECIFICATION).read_text())
    assert specification["dataset"] == "mnist"
    assert specification["recipe"]["adamw"]["weight_decay"] == 0.02
    assert specification["learning_rates"] == {"sgd": [0.02, 1e30], "adamw": [0.004]}
