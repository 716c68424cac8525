import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.errors import UserError
from jaxcnn.storage.manifest import short_digest
from jaxcnn.study.runs import (
    RUNS,
    best_rate,
    check_runs,
    count_missing,
    load_runs,
    missing_runs,
    run_lines,
    select_runs,
)
from tests.study.conftest import STUDY


def test_lines_are_plain_json(scored: Path) -> None:
    runs = load_runs(scored / RUNS)
    assert len(runs) == 12
    assert run_lines(runs) == (scored / RUNS).read_bytes()
    first = json.loads((scored / RUNS).read_text().splitlines()[0])
    names = "phase optimizer learning_rate seed steps_an_epoch diverged_at correct total train_loss"
    names += " train_accuracy validation_loss validation_accuracy digest"
    assert list(first) == names.split()
    assert str(runs[0]) == "tune sgd at 0.02 with seed 0"


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / RUNS
    assert load_runs(path) == []
    os.mkfifo(path)  # reading would wait for a writer
    with pytest.raises(
        UserError, match=r"runs.jsonl holds no runs of a study .* not a regular file"
    ):
        load_runs(path)


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / RUNS
    for line in ("nonsense", "[]", "{}", '{"phase": "tune"}', "1", "[" * 10**6):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match=r"runs.jsonl, line 1, is not a run of a study"):
            load_runs(path)


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
def test_the_values_of_a_line_are_checked(
    change: dict[str, Any], scored: Path, tmp_path: Path
) -> None:
    """Even if its digest is correct."""
    first, second = (scored / RUNS).read_text().splitlines()[:2]
    fields = json.loads(second) | change
    del fields["digest"]
    line = json.dumps({**fields, "digest": short_digest(json.dumps(fields))})
    (tmp_path / RUNS).write_text(f"{first}\n{line}\n")
    with pytest.raises(UserError, match=r"runs.jsonl, line 2, is not a run of a study"):
        load_runs(tmp_path / RUNS)


def test_an_altered_line_is_named(scored: Path, tmp_path: Path) -> None:
    lines = (scored / RUNS).read_text().splitlines(keepends=True)
    altered = lines[2].replace('"correct": ', '"correct": 1')
    assert altered != lines[2]
    (tmp_path / RUNS).write_text("".join([*lines[:2], altered]))
    with pytest.raises(UserError, match=r"line 3, is not a run of a study, or was altered: remove"):
        load_runs(tmp_path / RUNS)


def test_an_incomplete_last_line_is_ignored(scored: Path, tmp_path: Path) -> None:
    path = tmp_path / RUNS
    content = (scored / RUNS).read_bytes()
    path.write_bytes(content[:-20])
    expected = load_runs(scored / RUNS)[:-1]
    assert load_runs(path, repair=False) == expected
    assert path.read_bytes() == content[:-20]
    assert load_runs(path) == expected
    assert path.read_bytes() == run_lines(expected)


def test_a_run_without_a_correct_prediction_is_one(scored: Path, tmp_path: Path) -> None:
    run = dataclasses.replace(load_runs(scored / RUNS)[0], correct=0)
    (tmp_path / RUNS).write_bytes(run_lines([run]))
    assert load_runs(tmp_path / RUNS) == [run]


def test_a_run_counts_once(scored: Path, tmp_path: Path) -> None:
    lines = (scored / RUNS).read_text().splitlines(keepends=True)
    (tmp_path / RUNS).write_text("".join([*lines, lines[3]]))
    with pytest.raises(UserError, match=r"line 13, repeats a run of an earlier line: remove it"):
        load_runs(tmp_path / RUNS)


def test_missing_runs(scored: Path) -> None:
    runs = load_runs(scored / RUNS)
    assert count_missing(STUDY, runs) == 0
    assert missing_runs(STUDY, [], "tune", "sgd") == [(0.02, 0), (0.02, 1), (1e30, 0), (1e30, 1)]
    some = [run for run in runs if run.key != ("final", "sgd", 0.02, 1)]
    assert missing_runs(STUDY, some, "final", "sgd") == [(0.02, 1)]
    assert missing_runs(STUDY, some, "final", "adamw") == []
    assert count_missing(STUDY, some) == 1
    # Without its tuning an optimizer's best rate is not known, so its final runs are missing too.
    assert count_missing(STUDY, runs[1:]) == 1 + 3
    assert count_missing(STUDY, []) == 12


def test_the_best_rate(scored: Path) -> None:
    runs = load_runs(scored / RUNS)
    assert best_rate(STUDY, runs, "sgd") == 0.02
    better = [
        dataclasses.replace(run, correct=60) if run.learning_rate > 1 else run for run in runs
    ]
    assert best_rate(STUDY, better, "sgd") == 1e30


def test_selected_runs_are_ordered(scored: Path) -> None:
    runs = load_runs(scored / RUNS)[::-1]
    found = select_runs(runs, "tune", "sgd")
    assert [run.key[2:] for run in found] == [(0.02, 0), (0.02, 1), (1e30, 0), (1e30, 1)]
    assert [run.seed for run in select_runs(runs, "tune", "sgd", 1e30)] == [0, 1]
    assert select_runs(runs, "final", "sgd", 1e30) == []


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
        {"learning_rate": 1e30},  # of the study, but not the best one of the tuning
    ],
)
def test_a_run_that_does_not_belong_to_the_study_is_refused(
    change: dict[str, Any], scored: Path
) -> None:
    """It would count in the tables."""
    runs = load_runs(scored / RUNS)
    check_runs(STUDY, runs, scored / RUNS)
    final = next(run for run in runs if run.phase == "final")
    kept = [run for run in runs if run is not final]
    other = dataclasses.replace(final, **change)
    with pytest.raises(
        UserError, match=r"has a run that does not belong .* remove its line"
    ) as got:
        check_runs(STUDY, [*kept, other], scored / RUNS)
    assert f"({other})" in str(got.value)
