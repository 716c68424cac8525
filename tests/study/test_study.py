import dataclasses
import json
import linecache
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import processes
from jaxcnn.errors import UserError
from jaxcnn.study.runs import RUNS, Phase, Run, best_rate, load_runs, run_lines
from jaxcnn.study.specification import (
    SPECIFICATION,
    Study,
    load_specification,
    write_specification,
)
from jaxcnn.study.study import StudyObserver, hold_out, run_study
from jaxcnn.train import ensemble
from jaxcnn.train.members import grid
from tests import scores
from tests.linear import Linear
from tests.several import end, start
from tests.study.conftest import RECIPE, STUDY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


class Other(Linear):
    """Another network."""


@pytest.fixture(scope="module", autouse=True)
def _small_networks() -> Iterator[None]:
    """Lets studies train a network that is quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.setup.make_model", lambda *_: Linear())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> tuple[Path, list[Run]]:
    """A study from beginning to end."""
    workdir = tmp_path_factory.mktemp("study")
    return workdir, run_study(STUDY, tiny_mnist, workdir)


def test_another_network_is_part_of_the_study(
    tmp_path: Path, tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Any] = []

    def chunks(*args: Any, model: Any = None, **options: Any) -> Any:
        models.append(model)
        return scores.chunks(*args, **options)

    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", chunks)
    own = Linear()
    run_study(STUDY, tiny_mnist, tmp_path, model=own)
    assert models
    assert all(model == own for model in models)
    run_study(STUDY, tiny_mnist, tmp_path, model=own)  # nothing is missing
    for other in (None, Other()):
        with pytest.raises(UserError, match="its model differs"):
            run_study(STUDY, tiny_mnist, tmp_path, model=other)


def test_every_run_is_there_once(whole: tuple[Path, list[Run]]) -> None:
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


def test_processes_compare_their_arguments(
    tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
    compared: list[dict[str, Any]] = []
    monkeypatch.setattr("jaxcnn.devices.processes.check_same", compared.append)
    run_study(STUDY, tiny_mnist, tmp_path, chunk=2)
    (asked,) = compared
    assert (asked["chunk"], asked["mesh"], asked["seeds"]) == (2, None, STUDY.seeds)
    assert asked["learning_rates"]["sgd"] == [0.02, 1e30]


def test_a_diverged_run_is_marked_alone(whole: tuple[Path, list[Run]]) -> None:
    _, runs = whole
    for run in runs:
        diverged = run.learning_rate == 1e30
        assert (run.diverged_at > 0) == diverged
        assert (None in run.train_loss) == diverged
    assert best_rate(STUDY, runs, "sgd") == 0.02


def test_tuned_on_held_out_images_and_tested_once(
    whole: tuple[Path, list[Run]], tiny_mnist: Dataset
) -> None:
    _, runs = whole
    tuning, held_out = hold_out(tiny_mnist, 60)
    assert (len(tuning.train), len(held_out)) == (270, 60)
    everything = np.concatenate([tuning.train.images, held_out.images])
    assert len(np.unique(everything.reshape(330, -1), axis=0)) == 330
    for run in runs:
        tuned = run.phase == "tune"
        assert run.total == (60 if tuned else 70)
        assert run.steps_an_epoch == (9 if tuned else 11)
        assert len(run.validation_accuracy) == (2 if tuned else 0)
    for run, data, score in ((runs[5], tuning, held_out), (runs[-1], tiny_mnist, tiny_mnist.test)):
        single = ensemble.fit_many(
            STUDY.for_optimizer("adamw"),
            data,
            grid([run.seed], learning_rate=[0.004]),
            evaluate_on=score,
        )
        assert run.correct == single.correct[0]
        assert list(run.train_loss) == single.history["train_loss"][:, 0].tolist()
        assert list(run.train_accuracy) == single.history["train_accuracy"][:, 0].tolist()
    # The final run's images were scored at its end only, and its curve is none of a validation.
    assert (runs[5].phase, runs[-1].validation_loss) == ("tune", ())


@pytest.mark.parametrize("kept", [1, 7, 12])
def test_a_stopped_study_resumes(
    kept: int,
    whole: tuple[Path, list[Run]],
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed while it wrote a line: that run is done again, none of those before."""
    workdir, runs = whole
    lines = (workdir / RUNS).read_bytes().splitlines(keepends=True)
    (tmp_path / SPECIFICATION).write_bytes((workdir / SPECIFICATION).read_bytes())
    cut = lines[kept][:20] if kept < 12 else b""
    (tmp_path / RUNS).write_bytes(b"".join(lines[:kept]) + cut)
    trained: list[int] = []
    chunks = ensemble.fit_chunks

    def counting(recipe: object, dataset: object, members: object, **options: object) -> object:
        trained.append(len(members))
        return chunks(recipe, dataset, members, **options)

    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", counting)
    assert run_study(STUDY, tiny_mnist, tmp_path) == runs
    assert sum(trained) == 12 - kept
    for name in (RUNS, SPECIFICATION):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def test_every_machine_that_trained_is_named(
    tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
    for machine, kept, command in (("a", 0, "one"), ("b", 12, "two"), ("c", 7, ""), ("a", 11, "")):
        monkeypatch.setattr("jaxcnn.devices.environment.machine", lambda machine=machine: machine)
        path = tmp_path / RUNS
        if kept:
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:kept]))
        run_study(STUDY, tiny_mnist, tmp_path, command=command)
    specification = load_specification(tmp_path)
    assert (specification["machines"], specification["command"]) == (["a", "c"], "one")
    del specification["machines"]  # an old study has none
    write_specification(tmp_path, specification)
    run_study(STUDY, tiny_mnist, tmp_path)
    assert load_specification(tmp_path)["machines"] == ["a"]


def test_progress_is_reported(tiny_mnist: Dataset, tmp_path: Path) -> None:
    """Also that it has stopped, if it went wrong."""
    calls: list[tuple[object, ...]] = []

    class Observer(StudyObserver):
        def start(self, runs: int, images: int, done: int) -> None:
            calls.append(("start", runs, images, done))

        def runs(self, phase: Phase, optimizer: str, count: int) -> None:
            calls.append((phase, optimizer, count))

        def advance(self, images: int) -> None:
            calls.append(("advance", images))

        def stop(self) -> None:
            calls.append(("stop",))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
        run_study(STUDY, tiny_mnist, tmp_path, observer=Observer())
    everything = 2 * 270 * 3 * 2 + 2 * 330 * 2 * 3
    assert calls[:3] == [("start", 0, everything, 0), ("tune", "sgd", 4), ("advance", 540)]
    assert sum(images for name, images in (c for c in calls if c[0] == "advance")) == everything
    assert [call for call in calls if len(call) == 3] == [
        ("tune", "sgd", 4),
        ("tune", "adamw", 2),
        ("final", "sgd", 3),
        ("final", "adamw", 3),
    ]
    assert calls[-1] == ("stop",)
    path = tmp_path / RUNS
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:7]))
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("jaxcnn.train.ensemble.fit_chunks")
        with pytest.raises(AttributeError):
            run_study(STUDY, tiny_mnist, tmp_path, observer=Observer())
    assert calls[-3:] == [
        ("start", 7, everything, 6 * 540 + 660),
        ("final", "sgd", 2),
        ("stop",),
    ]


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_killed_study_resumes(tmp_path: Path) -> None:
    """By SIGKILL, in the middle of a run, with another process then."""
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    ((status, text),) = end(start(killed, 1, 1, "study", "kill", "0"))
    assert status == -signal.SIGKILL, text
    assert 1 <= len(load_runs(killed / RUNS)) < 6
    for folder in (killed, straight):
        ((status, text),) = end(start(folder, 1, 1, "study"))
        assert status == 0, text
    runs = (straight / RUNS).read_bytes()
    assert len(runs.splitlines()) == 6
    assert (killed / RUNS).read_bytes() == runs


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Also if one is killed on the way, and both are started again."""
    one, two = tmp_path / "one", tmp_path / "two"
    alone = start(one, 1, 2, "study")
    running = start(two, 2, 1, "study", "kill", "1")
    ((status, text), _), ((alone_status, alone_text),) = end(running), end(alone)
    assert status in (1, 2)
    assert text.strip().splitlines()[-1].endswith(f"error: {processes.LOST}")
    assert alone_status == 0, alone_text
    runs = load_runs(one / RUNS)
    before = load_runs(two / RUNS)
    assert 1 <= len(before) < len(runs) == 6
    for status, text in end(start(two, 2, 1, "study")):
        assert status == 0, text
    for name in (RUNS, SPECIFICATION):
        assert (two / name).read_bytes() == (one / name).read_bytes()


def test_an_optimizer_does_not_depend_on_the_others(
    whole: tuple[Path, list[Run]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    """Its runs alone are bit-identical to those of the study of both."""
    _, runs = whole
    for name, rates in STUDY.learning_rates.items():
        alone = dataclasses.replace(STUDY, learning_rates={name: rates})
        done = run_study(alone, tiny_mnist, tmp_path / name)
        assert done == [run for run in runs if run.optimizer == name]


def test_another_study_is_refused(whole: tuple[Path, list[Run]], tiny_mnist: Dataset) -> None:
    other = dataclasses.replace(STUDY, seeds=4, target=0.6)
    with pytest.raises(UserError, match=r"holds another study \(its seeds, target differs\)"):
        run_study(other, tiny_mnist, whole[0])


def test_a_run_that_does_not_belong_to_the_study_is_refused(
    whole: tuple[Path, list[Run]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    """It would count in the tables."""
    workdir, runs = whole
    (tmp_path / SPECIFICATION).write_bytes((workdir / SPECIFICATION).read_bytes())
    (tmp_path / RUNS).write_bytes(run_lines([*runs, dataclasses.replace(runs[0], seed=7)]))
    with pytest.raises(UserError, match=r"has a run that does not belong to this study \(tune sgd"):
        run_study(STUDY, tiny_mnist, tmp_path)


def test_lines_that_are_missing_are_done_again(
    whole: tuple[Path, list[Run]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    """A tuning run here, without which another rate might seem best."""
    workdir, runs = whole
    (tmp_path / SPECIFICATION).write_bytes((workdir / SPECIFICATION).read_bytes())
    (tmp_path / RUNS).write_bytes(run_lines(runs[1:]))
    assert run_study(STUDY, tiny_mnist, tmp_path) == [*runs[1:], runs[0]]


def test_runs_of_an_unknown_study_are_refused(
    whole: tuple[Path, list[Run]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    (tmp_path / RUNS).write_bytes((whole[0] / RUNS).read_bytes())
    there = (whole[0] / SPECIFICATION).read_text()
    flipped = there.replace('"batch_size": 3', '"batch_size": 2', 1)
    assert flipped != there
    for content in (None, "[", '{"machines": 3}', 100_000 * "[", 10_000 * '{"a":', flipped):
        if content:
            (tmp_path / SPECIFICATION).write_text(content)
        with pytest.raises(UserError, match=r"study.json cannot be read"):
            run_study(STUDY, tiny_mnist, tmp_path)


def test_a_study_without_runs_can_be_changed(tiny_mnist: Dataset, tmp_path: Path) -> None:
    (tmp_path / SPECIFICATION).write_text("{}")
    bad = dataclasses.replace(STUDY, recipe=RECIPE.replace(batch_size=300))
    with pytest.raises(UserError, match="batch_size 300 is larger"):
        run_study(bad, tiny_mnist, tmp_path)
    assert json.loads((tmp_path / SPECIFICATION).read_text())["batch_size"] == 300


def test_changed_code_of_a_user_s_optimizer_is_another_study(
    tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "mine_for_study.py"
    code = "import optax\ndef make(learning_rate):\n    return optax.sgd(learning_rate)\n"
    module.write_text(code)
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults.is_trusted", lambda name: True)
    rates = {"mine_for_study:make": (0.01,)}
    small = Study(RECIPE.replace(epochs=1), rates, tune_seeds=1, seeds=1, validation=60)
    run_study(small, tiny_mnist, tmp_path / "run")
    module.write_text(code + "# changed\n")
    linecache.checkcache()
    with pytest.raises(UserError, match="its code of mine_for_study:make differs"):
        run_study(small, tiny_mnist, tmp_path / "run")


def test_a_workdir_in_use_is_refused(tiny_mnist: Dataset, tmp_path: Path) -> None:
    with (
        filelock.FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="is in use by another process"),
    ):
        run_study(STUDY, tiny_mnist, tmp_path)


def test_too_many_held_out(tiny_mnist: Dataset, tmp_path: Path) -> None:
    workdir = tmp_path / "new"
    with pytest.raises(UserError, match="--validation takes 1 to 329 of the training images"):
        run_study(dataclasses.replace(STUDY, validation=330), tiny_mnist, workdir)
    assert not workdir.exists()
