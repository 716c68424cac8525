"""The experiments as a user starts them."""

import functools
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from tests.conftest import REPOSITORY
from tests.stripes import striped_split

# Trains until it is stopped.
LONG = "--data synthetic --epochs 100000 --batch-size 1000".split()
# Ends a test that hangs, in seconds; no run is late because the machine is busy.
HANG = 600


def start(network: str, *argv: str) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "experiments" / f"{network}.py"
    return subprocess.run(
        [sys.executable, str(script), *argv], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_help_and_mistakes(network: str) -> None:
    done = start(network, "--help")
    assert done.returncode == 0
    assert "auto|synthetic|NAME|PATH" in done.stdout
    done = start(network, "--epochs", "none")
    assert done.returncode == 2
    assert "--epochs" in done.stderr
    assert "'none'" in done.stderr
    assert "Traceback" not in done.stderr
    done = start(network, "--epochs", "0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{network}.py: error: --epochs takes ")


@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_an_experiment_is_short(network: str) -> None:
    text = (REPOSITORY / "experiments" / f"{network}.py").read_text()
    assert len(text.split('"""', 2)[2].splitlines()) < 40


def test_the_whole_run_on_a_page_gives_the_numbers_of_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = REPOSITORY / "experiments" / "minimal.py"
    assert len(path.read_text().splitlines()) <= 100
    train, test = striped_split((28, 28, 1), 512, 0), striped_split((28, 28, 1), 50, 1)
    dataset = jaxcnn.Dataset("mnist", "stripes", train, test, tuple("0123456789"))
    recipe = named.recipe("mnist", "sprint").replace(
        epochs=2,
        batch_size=64,
        learning_rate=0.004,
        warmup=0.0,
        weight_decay=0.0,
        label_smoothing=0.0,
        dropout=0.2,
    )
    with jax.numpy_dtype_promotion("standard"):  # as for users, and as optax needs it
        params = runpy.run_path(str(path))["main"](dataset, seed=3, epochs=2)
        result = jaxcnn.fit(recipe, dataset, seed=3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, params, result.state.params)
    last = f"epoch 2: loss {result.history[-1].train_loss:.4f}, {result.test_correct} of "
    assert last in capsys.readouterr().out


@pytest.mark.slow
def test_missing_archives_are_one_sentence(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    done = start(
        "mnist", "--data", "mnist", "--archive-dir", str(tmp_path / "no"), "--workdir", str(workdir)
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--archive-dir" in done.stderr
    assert not workdir.exists()


def real(network: str, workdir: Path, *argv: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains for one epoch on the real data; returns the result and the epoch's record."""
    done = start(network, "--epochs", "1", "--data", network, "--workdir", str(workdir), *argv)
    assert done.returncode == 0, done.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert result["dataset"] == network
    assert result["test_total"] == 10_000
    assert f"{result['test_correct']:,} correct of 10,000 total" in done.stdout
    return result, json.loads((workdir / "metrics.jsonl").read_text())


@pytest.mark.slow
def test_real_mnist_for_one_epoch_with_either_feed(tmp_path: Path, real_data: Path) -> None:
    archives = ("--archive-dir", str(real_data / "archives"))
    result, record = real("mnist", tmp_path / "device", "--feed", "device", *archives)
    assert result["test_accuracy"] > 0.975
    assert (tmp_path / "device" / "report.html").exists()
    never = ("--report", "never")
    _, other = real("mnist", tmp_path / "stream", "--feed", "stream", *never, *archives)
    for times in ("seconds", "images_per_second"):
        assert record.pop(times) != other.pop(times)
    assert record == other


@pytest.mark.slow
def test_real_cifar10_for_one_epoch(tmp_path: Path, real_data: Path) -> None:
    result, _ = real("cifar10", tmp_path / "run", "--data-dir", str(real_data / "tfds"))
    assert result["test_accuracy"] > 0.55
    assert (tmp_path / "run" / "report.html").exists()


def begin(workdir: Path, synthetic_cache: str, *argv: str) -> subprocess.Popen[str]:
    """Starts a long run and waits for its first epoch."""
    script = str(REPOSITORY / "experiments" / "mnist.py")
    process = subprocess.Popen(
        [sys.executable, "-u", script, *LONG, "--workdir", str(workdir), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAXCNN_CACHE_DIR": synthetic_cache},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_signals_save_and_the_same_command_resumes(tmp_path: Path, synthetic_cache: str) -> None:
    workdir = tmp_path / "run"
    steps = []
    for name, status in (("SIGTERM", 143), ("SIGINT", 130)):
        process = begin(workdir, synthetic_cache, "--checkpoint-every", "0")
        if name == "SIGTERM":
            second = start("mnist", *LONG, "--workdir", str(workdir))
            assert second.returncode == 2
            assert "in use by another process" in second.stderr
        process.send_signal(signal.Signals[name])
        _, err = process.communicate(timeout=HANG)
        assert process.returncode == status
        saved = checkpoint.list_checkpoints(workdir / "checkpoints")[-1]
        saved.verify()
        assert f"saved in {saved.folder}; the same flags with --workdir {workdir}" in err
        assert "Traceback" not in err
        assert not (workdir / "result.json").exists()
        steps.append(saved.step)
    assert 0 < steps[0] < steps[1]
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    assert epochs == list(range(1, steps[1] // 60 + 1))
    other = start("mnist", *LONG, "--workdir", str(workdir), "--seed", "1")
    assert other.returncode == 2
    assert "seed 0 there and 1 here" in other.stderr


def test_the_array_of_a_study(tmp_path: Path) -> None:
    """A substitute for Python shows what each task starts."""
    script = str(REPOSITORY / "experiments" / "study.slurm")
    stub = tmp_path / "python"  # prints its arguments
    stub.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    command = ["bash", script, "--network", "cifar10", "--optimizer-args", "a b"]
    started = []
    for task in range(4):
        environment = {"PATH": path, "SLURM_ARRAY_TASK_ID": str(task)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        program, *argv = done.stdout.splitlines()
        assert (REPOSITORY / program).exists()
        *flags, name, _, workdir = argv
        assert flags == [*command[2:], "--optimizers"]
        assert workdir == f"runs/four/{name}"
        started.append(name)
    assert started == ["sgd", "adamw", "muon", "lion"]
    assert f"#SBATCH --array=0-{len(started) - 1}\n" in Path(script).read_text()
    beyond = {"PATH": path, "SLURM_ARRAY_TASK_ID": "4"}
    done = subprocess.run(command, env=beyond, capture_output=True, text=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "optimizers" in done.stderr


@pytest.fixture(params=["limit", "tmpfs"])
def scarce(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A workdir that is soon full, and the shell's command that makes it so."""
    if request.param == "limit":
        yield tmp_path / "run", "ulimit -f 700;"  # KiB
        return
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder / "run", ""
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(
    scarce: tuple[Path, str], synthetic_cache: str
) -> None:
    workdir, limit = scarce
    argv = ["--epochs", "9", "--optimizer", "adam", "--keep", "9", "--no-compilation-cache"]
    script = str(REPOSITORY / "experiments" / "mnist.py")
    command = [sys.executable, script, *LONG, *argv, "--workdir", str(workdir)]
    done = subprocess.run(
        ["bash", "-c", f'{limit} exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG,
        env={**os.environ, "JAXCNN_CACHE_DIR": synthetic_cache},
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot write" in done.stderr
    assert "give --workdir" in done.stderr
    assert not (workdir / "result.json").exists()
    saved = checkpoint.list_checkpoints(workdir / "checkpoints")
    assert len(saved) >= (0 if limit else 1)
    for one in saved:
        one.verify()
    assert not list((workdir / "checkpoints").glob(".*.staging"))
