from pathlib import Path

import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.landscape import survey
from jaxcnn.train.trained import load_trained
from tests import saved


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """No eigenvalues, which test_curvature sees, and few positions."""
    monkeypatch.setattr(survey, "extreme_eigenvalues", lambda *_: (-1.0, np.array([3.0, 2.0])))
    for name in ("_UPDATE_POSITIONS", "_RANDOM_POSITIONS", "_PLANE_POSITIONS"):
        monkeypatch.setattr(survey, name, np.array([-1, 0, 1], np.float32))
    monkeypatch.setattr(survey, "_RANDOM_DIRECTIONS", 2)


def test_the_slices_meet_at_the_checkpoint(tmp_path: Path, tiny_mnist: Dataset) -> None:
    saved.save(tmp_path, tiny_mnist, saves=saved.EPOCHS)
    earlier, last = load_trained(tmp_path, "14"), load_trained(tmp_path)
    found = survey.make_survey(
        [earlier, last], tiny_mnist.train, before=earlier, images=200, eigenvalues=2
    )
    assert [point.step for point in found.points] == [14, 21]
    before, here = (point.loss for point in found.points)
    assert before != pytest.approx(here, rel=1e-3)
    update = dict(zip(np.round(found.update_positions, 3), found.update_losses, strict=True))
    assert update[0] == pytest.approx(here, rel=1e-5)
    assert update[-1] == pytest.approx(before, rel=1e-5)  # a whole update back
    assert found.direction == "the update since step 14"
    for losses in found.random_losses:
        assert losses[len(losses) // 2] == pytest.approx(here, rel=1e-5)
    assert found.plane_losses[1][1] == pytest.approx(here, rel=1e-5)


def test_without_an_earlier_checkpoint_the_gradient_is_followed(
    tmp_path: Path, tiny_mnist: Dataset
) -> None:
    saved.save(tmp_path, tiny_mnist)
    found = survey.make_survey([load_trained(tmp_path)], tiny_mnist.train, images=200)
    assert found.direction.startswith("the negative gradient")
    middle = len(found.update_losses) // 2
    assert found.update_losses[middle + 1] < found.update_losses[middle - 1]
