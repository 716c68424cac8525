"""The experiments as a user starts them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def start(network: str, *argv: str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "experiments" / f"{network}.py"
    return subprocess.run(
        [sys.executable, str(script), *argv], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_help_and_mistakes(network: str) -> None:
    done = start(network, "--help")
    assert done.returncode == 0
    assert f"{{auto,{network},synthetic}}" in done.stdout
    done = start(network, "--epochs", "none")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{network}.py: error: ")
    assert "Traceback" not in done.stderr


def test_missing_archives_are_one_sentence(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    done = start(
        "mnist", "--data", "mnist", "--archive-dir", str(tmp_path / "no"), "--workdir", str(workdir)
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--archive-dir" in done.stderr
    assert not workdir.exists()


def test_real_mnist_for_one_epoch_with_either_feed(tmp_path: Path, real_data: Path) -> None:
    metrics = []
    for feed in ("device", "stream"):
        workdir = tmp_path / feed
        options = ["--epochs", "1", "--data", "mnist", "--feed", feed, "--workdir", str(workdir)]
        done = start("mnist", *options, "--archive-dir", str(real_data / "archives"))
        assert done.returncode == 0, done.stderr
        result = json.loads((workdir / "result.json").read_text())
        assert result["dataset"] == "mnist"
        assert result["test_total"] == 10_000
        assert result["test_accuracy"] > 0.975
        assert f"{result['test_correct']:,} right of 10,000 total" in done.stdout
        metrics.append(json.loads((workdir / "metrics.jsonl").read_text()))
    for times in ("seconds", "images_per_second"):
        assert metrics[0].pop(times) != metrics[1].pop(times)
    assert metrics[0] == metrics[1]
