"""Real processes over loopback."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxcnn import checkpoint, processes
from jaxcnn.errors import UserError
from tests.several import PATIENCE, end, start


def train(folder: Path, count: int, devices: int, *action: str) -> dict[str, np.ndarray]:
    """Runs to the end and returns parameters and losses."""
    for status, text in end(start(folder, count, devices, *action)):
        assert status == 0, text
    return dict(np.load(folder / "end.npz"))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(one["numbers"], other["numbers"], atol=1e-4)
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process with four devices makes of the run."""
    return train(tmp_path_factory.mktemp("alone"), 1, 4)


def test_two_processes_stop_together_and_one_or_four_go_on(
    alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    stopped = end(start(begun, 2, 2, "stop", "1"))  # only one of them is asked to
    for _, text in stopped:
        assert "stopped at step" in text
    steps = [saved.step for saved in checkpoint.listed(begun / "checkpoints")]
    assert 5 in steps
    assert steps[-1] % 5  # saved once more when they stopped
    for count in (1, 4):
        folder = tmp_path / f"{count}"
        shutil.copytree(begun, folder)
        assert_same(train(folder, count, 4 // count), alone)


@pytest.mark.parametrize(("action", "victim"), [("kill", "0"), ("kill", "1"), ("hang", "1")])
def test_a_process_that_is_gone_ends_the_others_and_the_run_goes_on(
    action: str, victim: str, alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    running = start(tmp_path, 2, 2, action, victim)
    survivor = running[1 - int(victim)]
    _, text = survivor.communicate(timeout=PATIENCE)
    for process in running:
        process.kill()
        process.communicate()
    assert survivor.returncode in (1, 2)
    assert text.strip().splitlines()[-1].endswith(f"error: {processes.LOST}")
    if (action, victim) == ("kill", "0"):
        assert_same(train(tmp_path, 2, 2), alone)


def test_flags() -> None:
    processes.join("1", "", -1)  # this process alone
    assert (processes.count(), processes.is_main()) == (1, True)
    for values, named in (
        (("none", "", -1), "--processes takes a number from 1, or auto, got 'none'"),
        (("2", "", -1), "--processes 2 takes --coordinator HOST:PORT"),
        (("2", "host:1", 2), "--process-id from 0 to 1, got 'host:1' and 2"),
        (("auto", "host:1", -1), "--processes auto finds --coordinator"),
    ):
        with pytest.raises(UserError, match=named):
            processes.join(*values)
