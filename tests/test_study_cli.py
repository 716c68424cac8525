import subprocess
import sys
from pathlib import Path
from typing import Any

import optax
import pytest

from jaxcnn import data, study_cli
from jaxcnn.data import Dataset
from tests.conftest import REPOSITORY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


def per_example(learning_rate: float) -> optax.GradientTransformation:
    """An optimizer of a user's that cannot work."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        raise ValueError("a step has one gradient for all")

    return optax.GradientTransformation(lambda params: learning_rate, update)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--optimizers sgd sdg", "got 'sdg' (did you mean sgd?)"),
        ("--optimizers dpsgd", "cannot be dpsgd: it needs a gradient for every image"),
        ("--optimizers sgd sgd", "each name once"),
        ("--optimizers my_module:thing", "cannot import my_module"),
        ("--optimizers sgd tests.test_study_cli:per_example", "a step has one gradient for all"),
        ("--learning-rates fast", "--learning-rates takes numbers above 0"),
        ("--seeds 0", "--seeds takes a whole number from 1 to 10000, got 0"),
        ("--target 2", "--target takes a number from 0 to 1"),
        ("--epochs 0", "--epochs takes a whole number from 1"),
        ("--network imagenet", "'imagenet'"),
        ("--shard 0/4", "--shard takes K/N, the K-th of N shards, with K from 1 to N, got '0/4'"),
        ("--shard 1/5", "the shards of this study are at most 4"),
        ("--merge nowhere", "--merge nowhere: no shard of a study is there"),
        ("--merge a --seeds 3 --shard 1/2", "leave --seeds, --shard away"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        study_cli.main([*argv.split(), "--workdir", str(tmp_path / "run")])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert named in line
    assert not (tmp_path / "run").exists()


def test_a_study(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(data, "load", lambda name, **options: tiny_mnist)
    argv = "--optimizers sgd adamw --learning-rates 0.01:0.02:log2 --seeds 2 --tune-seeds 1"
    argv += f" --epochs 1 --batch-size 30 --validation 60 --workdir {tmp_path / 'run'}"
    study_cli.main([*argv.split(), "--no-compilation-cache"])
    out, _ = capsys.readouterr()
    assert "tune sgd: 2 runs (0% of the study done)" in out
    assert "| optimizer | test accuracy, mean ± standard error (2 seeds) |" in out
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {
        "study.json",
        "runs.jsonl",
        "curves.csv",
        "table.md",
        "learning-curves.png",
        "learning-rates.png",
        "time-to-target.png",
    }
    assert (tmp_path / "run" / "table.md").read_text() in out
    study_cli.main([*argv.split(), "--no-compilation-cache"])
    out, _ = capsys.readouterr()
    assert "8 runs are there already" in out
    assert "of the study done" not in out  # nothing was left to do


def test_shards_and_their_merge(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What they leave is what the whole study leaves, to the last byte."""
    monkeypatch.setattr(data, "load", lambda name, **options: tiny_mnist)
    argv = "--optimizers sgd adamw --learning-rates 0.01 --seeds 2 --tune-seeds 1 --epochs 1"
    argv += " --batch-size 30 --validation 60 --no-compilation-cache --workdir"
    study_cli.main([*argv.split(), str(tmp_path / "whole")])
    workdir = tmp_path / "shards"
    study_cli.main([*argv.split(), str(workdir), "--shard", "1/2"])
    with pytest.raises(SystemExit):
        study_cli.main(["--merge", str(workdir)])
    assert "lacks 1 of the study's 2 shards (2/2)" in capsys.readouterr().err
    study_cli.main([*argv.split(), str(workdir), "--shard", "2/2"])
    table = (workdir / "shard-2-of-2" / "table.md").read_text()
    assert ("| sgd |" in table, "| adamw |" in table) == (True, False)
    study_cli.main(["--merge", str(workdir)])
    pictures = [f"{name}.png" for name in ("learning-curves", "learning-rates", "time-to-target")]
    for name in ("runs.jsonl", "curves.csv", "table.md", *pictures):
        assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    capsys.readouterr()
    study_cli.main([*argv.split(), str(workdir)])
    assert "6 runs are there already" in capsys.readouterr().out
    other = tmp_path / "other"
    (workdir / "shard-1-of-2").rename(other)
    folders = [str(other), str(workdir / "shard-2-of-2")]
    with pytest.raises(SystemExit):
        study_cli.main(["--merge", *folders])
    assert "takes --workdir too" in capsys.readouterr().err
    study_cli.main(["--merge", *folders, "--workdir", str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "table.md").read_bytes() == (workdir / "table.md").read_bytes()


@pytest.mark.parametrize("script", ["optimizers.py", "my_optimizer.py"])
def test_help(script: str) -> None:
    command = [sys.executable, str(REPOSITORY / "experiments" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--learning-rates" in done.stdout


def test_the_example_is_short() -> None:
    assert len((REPOSITORY / "experiments" / "my_optimizer.py").read_text().splitlines()) < 40
