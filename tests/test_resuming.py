import subprocess
import sys
from pathlib import Path

from jaxcnn import checkpoint
from tests import resuming
from tests.conftest import REPOSITORY


def start(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.resuming", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout


def test_every_kind_of_optimizer_and_an_ensemble_go_on_in_another_process(tmp_path: Path) -> None:
    said = start(str(tmp_path / "broken"), "stop")
    names = (*resuming.OPTIMIZERS, resuming.ENSEMBLE)
    assert said.count("stopped at step") == len(names)
    for name in names:
        (stopped,) = checkpoint.listed(tmp_path / "broken" / name)
        assert 0 < stopped.step < 10  # in the middle of the first epoch
    start(str(tmp_path / "broken"))
    start(str(tmp_path / "straight"))
    broken, straight = (resuming.outcomes(tmp_path / name) for name in ("broken", "straight"))
    assert broken == straight
