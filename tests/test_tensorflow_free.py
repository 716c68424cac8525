"""No path through the package imports TensorFlow, even where it is installed."""

import importlib.abc
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.data import decoding
from jaxcnn.data.dataset import load_data
from tests.conftest import REPOSITORY
from tests.official import Official

# Imports every module of the package.
IMPORTS = """
import importlib, pkgutil, sys
import jaxcnn
for module in pkgutil.walk_packages(jaxcnn.__path__, "jaxcnn."):
    importlib.import_module(module.name)
assert "jaxcnn.data.tfds" in sys.modules
assert "tensorflow" not in sys.modules
"""

# Downloads, prepares, decodes and trains first.
TRAINING = """
import importlib, json, sys
from tensorflow_datasets.core.download.checksums import UrlInfo
from jaxcnn.data import builders, decoding
name, workdir = sys.argv[1], sys.argv[3]
archives, decoding.OFFICIAL[name] = json.loads(sys.argv[2])
infos = {url: UrlInfo(size, digest, url.rsplit("/", 1)[-1]) for url, size, digest in archives}
builders.BUILDERS[name].urls = tuple(infos)
builders.BUILDERS[name].url_infos = infos
argv = ["--data", name, "--epochs", "1", "--batch-size", "20", "--feed", "stream"]
importlib.import_module(f"experiments.{name}").main([*argv, "--workdir", workdir])
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TensorFlow on the path of child processes that cannot be imported unnoticed."""
    folder = tmp_path / "trap" / "tensorflow"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(folder.parent), prepend=os.pathsep)


def run(program: str, *arguments: str) -> None:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("trap")
def test_every_module_is_imported_without_tensorflow() -> None:
    run(IMPORTS)


class Finder(importlib.abc.MetaPathFinder):
    """Notes what of TensorFlow is looked for."""

    def __init__(self) -> None:
        self.noted: list[str] = []

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] == "tensorflow":
            self.noted.append(name)


@pytest.mark.parametrize("name", ["mnist", "emnist/letters", "cifar10", "cifar100", "svhn_cropped"])
def test_download_prepare_and_decode_without_tensorflow(
    name: str, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    finder = Finder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    dataset = load_data(name, source="real")
    assert len(dataset.test) == len(official.splits["test"])
    assert finder.noted == []


@pytest.mark.slow
@pytest.mark.usefixtures("trap")
def test_download_prepare_and_train_without_tensorflow(
    tmp_path: Path, name: str, official: Official
) -> None:
    archives = [(a.url, a.size, a.sha256) for a in official.archives]
    known = json.dumps([archives, decoding.OFFICIAL[name]])
    run(TRAINING + IMPORTS, name, known, str(tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["dataset"], result["test_total"]) == (name, len(official.splits["test"]))


def test_tensorflow_is_no_dependency() -> None:
    names = [line.split(";")[0] for line in importlib.metadata.requires("jaxcnn") or []]
    assert not any(name.strip().split(">")[0] in ("tensorflow", "tensorflow-cpu") for name in names)
