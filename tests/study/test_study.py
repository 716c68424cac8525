import dataclasses
import json
import linecache
import os
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
from jaxcnn.recipes import named
from jaxcnn.storage.manifest import short_digest
from jaxcnn.study.runs import (
    RUNS,
    SPECIFICATION,
    Phase,
    Run,
    Study,
    best_rate,
    load_runs,
    load_specification,
    load_study,
    run_lines,
    write_specification,
)
from jaxcnn.study.shards import Shard
from jaxcnn.study.study import StudyObserver, hold_out, run_study
from jaxcnn.train import ensemble
from jaxcnn.train.members import grid
from tests import scores
from tests.linear import Linear
from tests.several import end, start

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

RECIPE = named.recipe("mnist", "fast").replace(epochs=2, batch_size=30, augment="none")
STUDY = Study(
    RECIPE,
    {"sgd": (0.02, 1e30), "adamw": (0.004,)},
    tune_seeds=2,
    seeds=3,
    validation=60,
    target=0.5,
)


@pytest.fixture(scope="module", autouse=True)
def _small_networks() -> Iterator[None]:
    """Lets studies train a network that is quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.setup.make_model", lambda recipe: Linear())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> tuple[Path, list[Run]]:
    """A study from beginning to end."""
    workdir = tmp_path_factory.mktemp("study")
    return workdir, run_study(STUDY, tiny_mnist, workdir)


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


def test_all_processes_are_asked_for_the_same(
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
def test_a_stopped_study_goes_on(
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


def test_every_machine_is_named_that_had_something_to_do(
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
    del specification["machines"]  # as a merge of old shards has none
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
def test_a_killed_study_goes_on(tmp_path: Path) -> None:
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


def test_a_shard_does_what_the_whole_does(
    whole: tuple[Path, list[Run]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    """Bit for bit; what it belongs to is the whole study, which it is a part of."""
    workdir, runs = whole
    done = run_study(STUDY, tiny_mnist, tmp_path, shard=Shard(1, 2), command="do it")
    assert done == [run for run in runs if run.optimizer == "adamw"]
    specification = load_specification(tmp_path)
    assert [specification.pop(name) for name in ("shard", "shards")] == [1, 2]
    assert specification.pop("command") == "do it"
    expected = load_specification(workdir)
    assert expected.pop("command") == ""
    assert specification == expected


def test_another_study_is_refused(whole: tuple[Path, list[Run]], tiny_mnist: Dataset) -> None:
    other = dataclasses.replace(STUDY, seeds=4, target=0.6)
    with pytest.raises(UserError, match=r"holds another study \(its seeds, target differs\)"):
        run_study(other, tiny_mnist, whole[0])


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / RUNS
    assert load_runs(path) == []
    os.mkfifo(path)  # reading would wait for a writer
    with pytest.raises(
        UserError, match=r"runs.jsonl holds no runs of a study .* not a regular file"
    ):
        load_runs(path)


def test_damage_is_named(tiny_mnist: Dataset, tmp_path: Path) -> None:
    path = tmp_path / RUNS
    for line in ("nonsense", "[]", "{}", '{"phase": "tune"}', "1", "[" * 10**6):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=r"runs.jsonl, line 1, is no run of a study"):
            load_runs(path)
    path.unlink()


@pytest.mark.parametrize(
    "change",
    [
        {"correct": 61},
        {"correct": -1},
        {"total": 0},
        {"correct": "1"},
        {"phase": "once"},
        {"train_loss": [0.5, "x"]},
        {"optimizer": None},
        {"seed": 0.5},
    ],
)
def test_what_a_line_says_is_checked(
    change: dict[str, Any], whole: tuple[Path, list[Run]], tmp_path: Path
) -> None:
    """Though its digest is right."""
    first, second = (whole[0] / RUNS).read_text().splitlines()[:2]
    fields = json.loads(second) | change
    del fields["digest"]
    line = json.dumps({**fields, "digest": short_digest(json.dumps(fields))})
    (tmp_path / RUNS).write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError, match=r"runs.jsonl, line 2, is no run of a study"):
        load_runs(tmp_path / RUNS)


def test_a_run_without_a_right_answer_is_one(whole: tuple[Path, list[Run]], tmp_path: Path) -> None:
    run = dataclasses.replace(whole[1][0], correct=0)
    (tmp_path / RUNS).write_bytes(run_lines([run]))
    assert load_runs(tmp_path / RUNS) == [run]


def test_a_run_counts_once(whole: tuple[Path, list[Run]], tmp_path: Path) -> None:
    lines = (whole[0] / RUNS).read_text().splitlines(keepends=True)
    (tmp_path / RUNS).write_text("".join([*lines, lines[3]]))
    with pytest.raises(UserError, match=r"line 13, is of a run that is there already: remove it"):
        load_runs(tmp_path / RUNS)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "adam"},
        {"learning_rate": 0.3},
        {"seed": 3},
        {"seed": -1},
        {"train_loss": (0.5,)},
        {"train_accuracy": (0.5,) * 3},
        {"phase": "tune", "seed": 2},
        {"learning_rate": 1e30},  # of the study, but not the one that the tuning has found
    ],
)
def test_a_run_that_the_study_has_not_asked_for_is_refused(
    change: dict[str, Any],
    whole: tuple[Path, list[Run]],
    tiny_mnist: Dataset,
    tmp_path: Path,
) -> None:
    """It would count in the tables."""
    workdir, runs = whole
    final = next(run for run in runs if run.phase == "final")
    kept = [run for run in runs if run is not final]
    (tmp_path / SPECIFICATION).write_bytes((workdir / SPECIFICATION).read_bytes())
    (tmp_path / RUNS).write_bytes(run_lines([*kept, dataclasses.replace(final, **change)]))
    with pytest.raises(UserError, match=r"has a run that this study does not have .* remove its l"):
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


def test_changed_code_of_one_s_own_is_another_study(
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


def test_files_are_plain_json(whole: tuple[Path, list[Run]]) -> None:
    workdir, runs = whole
    assert load_runs(workdir / RUNS) == runs
    assert load_study(workdir) == STUDY
    specification = json.loads((workdir / SPECIFICATION).read_text())
    assert specification["dataset"] == "mnist"
    assert specification["recipe"]["adamw"]["weight_decay"] == 0.02
    assert specification["learning_rates"] == {"sgd": [0.02, 1e30], "adamw": [0.004]}
