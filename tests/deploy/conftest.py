from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy.page import write_page
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.deploy.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


@pytest.fixture(scope="package")
def paths(
    networks: dict[str, Trained],
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A page for each network, with images."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        dataset.name: write_page(networks[dataset.name], dataset, folder / f"{dataset.name}.html")
        for dataset in (tiny_mnist, tiny_cifar10)
    }


@pytest.fixture(scope="module")
def engine(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    tab = browser.new_page()
    tab.set_default_timeout(600_000)
    yield Engine(tab, tmp_path_factory.mktemp("engine"))
    tab.close()
