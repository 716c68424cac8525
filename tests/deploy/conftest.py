from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy import demo, server
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.serving import HANG, Stub, serving


@pytest.fixture(scope="package")
def photographs(tmp_path_factory: pytest.TempPathFactory, tiny_cifar10: Dataset) -> Trained:
    folder = tmp_path_factory.mktemp("photographs")
    return load_trained(saved.save(folder, tiny_cifar10, saves=[3]))  # before an epoch has ended


@pytest.fixture(scope="package")
def runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset, tiny_cifar10: Dataset
) -> dict[str, Path]:
    """A workdir for each network, with a checkpoint whose BatchNorm is far from a fresh one's."""
    return {
        dataset.name: saved.save(tmp_path_factory.mktemp("run"), dataset)
        for dataset in (tiny_mnist, tiny_cifar10)
    }


@pytest.fixture(scope="package")
def networks(runs: dict[str, Path]) -> dict[str, Trained]:
    return {name: load_trained(workdir) for name, workdir in runs.items()}


@pytest.fixture
def offered() -> demo.Demo:
    """What the server of `listening` serves."""
    return Stub()


@pytest.fixture
def listening(offered: demo.Demo, monkeypatch: pytest.MonkeyPatch) -> Iterator[server.Server]:
    """A server on a free port that is left in silence."""
    monkeypatch.setattr("jaxcnn.deploy.server._LINGER", HANG)
    said: list[str] = []
    with serving(server.Server(offered, patience=HANG, report=said.append)) as found:
        yield found
    assert said == []
