"""A small study, which the tests of its files share."""

from pathlib import Path

import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.recipes import named
from jaxcnn.study.specification import Study
from jaxcnn.study.study import run_study
from tests import scores

RECIPE = named.recipe("mnist", "fast").replace(epochs=2, batch_size=30, augment="none")
STUDY = Study(
    RECIPE,
    {"sgd": (0.02, 1e30), "adamw": (0.004,)},
    tune_seeds=2,
    seeds=3,
    validation=60,
    target=0.5,
)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    """The workdir of the study, finished with made-up scores."""
    workdir = tmp_path_factory.mktemp("scored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
        run_study(STUDY, tiny_mnist, workdir, command="do it")
    return workdir
