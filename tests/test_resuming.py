import subprocess
import sys
from pathlib import Path

import pytest

from jaxcnn.storage import checkpoint
from tests import resuming
from tests.conftest import REPOSITORY
from tests.linear import Linear


def start(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.resuming", *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.loose_promotion  # optax's own arithmetic mixes dtypes
def test_a_run_goes_on_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same process, with an optimizer that draws numbers; the slow test has the others."""
    name = "noisy_sgd"
    resuming.short_pieces(monkeypatch.setattr)
    broken, straight = tmp_path / "broken", tmp_path / "straight"
    resuming.run(broken, stop=True, names=[name], model=Linear())
    (stopped,) = checkpoint.list_checkpoints(broken / name)
    assert 0 < stopped.step < 10
    for folder in (broken, straight):
        resuming.run(folder, stop=False, names=[name], model=Linear())
    one, other = (resuming.outcomes(folder) for folder in (broken, straight))
    assert one == other
    assert len(one) == 1


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_every_kind_of_optimizer_and_an_ensemble_go_on_in_another_process(tmp_path: Path) -> None:
    said = start(str(tmp_path / "broken"), "stop")
    names = (*resuming.OPTIMIZERS, resuming.ENSEMBLE)
    assert said.count("stopped at step") == len(names)
    for name in names:
        (stopped,) = checkpoint.list_checkpoints(tmp_path / "broken" / name)
        assert 0 < stopped.step < 10  # in the middle of the first epoch
    start(str(tmp_path / "broken"))
    start(str(tmp_path / "straight"))
    broken, straight = (resuming.outcomes(tmp_path / name) for name in ("broken", "straight"))
    assert broken == straight
    assert len(broken) == len(names)
