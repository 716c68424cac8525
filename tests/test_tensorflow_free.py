"""No path through the package imports TensorFlow, even where it is installed."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.official import Official

# Downloads, prepares, decodes and trains with a TensorFlow on the path that cannot be imported
# unnoticed, then imports every module of the package.
PROGRAM = """
import importlib, json, pkgutil, sys
from tensorflow_datasets.core.download.checksums import UrlInfo
from jaxcnn import cli
from jaxcnn.data import builders
name, archives, workdir = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
infos = {url: UrlInfo(size, digest, url.rsplit("/", 1)[-1]) for url, size, digest in archives}
builders.BUILDERS[name].urls = tuple(infos)
builders.BUILDERS[name].url_infos = infos
argv = ["--data", name, "--epochs", "1", "--batch-size", "20", "--feed", "stream"]
cli.main(name, [*argv, "--workdir", workdir])
import jaxcnn
for module in pkgutil.walk_packages(jaxcnn.__path__, "jaxcnn."):
    importlib.import_module(module.name)
assert "tensorflow" not in sys.modules
"""


def test_download_prepare_and_train_without_tensorflow(
    tmp_path: Path, name: str, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')\n")
    monkeypatch.setenv("PYTHONPATH", str(trap.parent))
    archives = [(a.url, a.size, a.sha256) for a in official.archives]
    arguments = [name, json.dumps(archives), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["dataset"], result["test_total"]) == (name, len(official.splits["test"]))


def test_tensorflow_is_no_dependency() -> None:
    import importlib.metadata

    names = [line.split(";")[0] for line in importlib.metadata.requires("jaxcnn") or []]
    assert not any(name.strip().split(">")[0] in ("tensorflow", "tensorflow-cpu") for name in names)
