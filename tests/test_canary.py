"""Canaries in every field of every file of a run: none sings, whichever command opens it."""

import contextlib
import copy
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn import commands, data, demo, trained, training
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError
from tests import saved
from tests.page import Page
from tests.test_manifest import forge

pytestmark = [pytest.mark.slow, pytest.mark.loose_promotion]

CODE = "canary_of_jaxcnn:sing"
MARKUP = "<script>canary</script>{{ 191 * 7 }}`canary`[canary](javascript:canary)"
CONTROL = "\x1b]0;canary\x07\ncanary"
# The last one is taken for a name by whatever reads mappings.
CANARIES: list[Any] = [CODE, MARKUP, CONTROL, ["canary_of_jaxcnn"], {CODE: MARKUP}]
SONG = 191 * 7


def fields(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields where the values of JSON are, the inner ones too; of alike ones in a row, the last."""
    if path:
        yield path
    if isinstance(content, dict):
        for name, value in content.items():
            yield from fields(value, (*path, name))
    elif isinstance(content, list) and content:
        yield from fields(content[-1], (*path, len(content) - 1))


def plant(content: Any, path: tuple[Any, ...], canary: Any) -> None:
    *parents, last = path
    for name in parents:
        content = content[name]
    content[last] = canary


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    workdir = saved.save(tmp_path_factory.mktemp("run"), tiny_mnist, saves=[21], clip=1.0)
    result = {"command": "python experiments/mnist.py", "tta_test_accuracy": 0.5}
    (workdir / "result.json").write_text(json.dumps(result))
    return workdir


@pytest.fixture(autouse=True)
def _surroundings(
    undrawn: list[Path],
    unpredicted: None,
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """No data, figures or networks, which take long, and the canary where it can be imported."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "canary_of_jaxcnn.py").write_text("def sing(*args, **kwargs): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    monkeypatch.setattr(data, "load", lambda name, **options: tiny_mnist)
    monkeypatch.setattr(training, "evaluate", lambda *_, **__: (1, 2, 0.5))
    maps = {"conv1": np.zeros((1, 14, 14, 4), np.float32)}
    monkeypatch.setattr(trained.Trained, "feature_maps", lambda *_: maps)
    yield
    assert "canary_of_jaxcnn" not in sys.modules


FILES = {
    "manifest.json": "checkpoints/step-0000000021/manifest.json",
    "result.json": "result.json",
    "run.json": "checkpoints/run.json",
}


def left(workdir: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Opens a run with every command; yields the pages, cards and lines that they make."""
    picture = workdir / "picture.png"
    Image.new("L", (28, 28), 255).save(picture)
    exported = str(workdir / "x.safetensors")
    for argv in (
        ["evaluate", str(workdir)],
        ["predict", str(workdir), str(picture)],
        ["report", str(workdir)],
        ["export", str(workdir), "--format", "safetensors", "--out", exported],
    ):
        try:
            commands.main(argv)
        except SystemExit as end:
            assert end.code == 2
            said = capsys.readouterr().err
            assert len(said.splitlines()) == 1, said
        yield capsys.readouterr().out
    for page in (workdir / "report.html", workdir / "x.safetensors.md"):
        if page.exists():
            yield page.read_text()
    with contextlib.suppress(UserError):
        yield demo.Demo(trained.load(workdir)).page("nonce")


@pytest.mark.parametrize("name", FILES)
def test_no_canary_sings(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((sound / FILES[name]).read_text())
    sealed = name == "manifest.json"
    tried = 0
    for path in fields(content["content"] if sealed else content):
        # Only the manifest decides what the commands do.
        for canary in CANARIES if sealed else CANARIES[:2]:
            workdir = Path(shutil.copytree(sound, tmp_path / "run"))
            file = workdir / FILES[name]
            if sealed:  # with the digest of what it says now
                forge(lambda there, path=path, canary=canary: plant(there, path, canary))(
                    file.parent
                )
            else:
                changed = copy.deepcopy(content)
                plant(changed, path, canary)
                file.write_text(json.dumps(changed))
            for text in left(workdir, capsys):
                assert str(SONG) not in text, path
                assert "\x1b" not in text, path
                assert "\ncanary" not in text, path
                if "<html" in text:
                    page = Page(text)
                    assert all(one.text != "canary" for one in page.all("script")), path
                    links = [one.attributes.get("href", "") for one in page.elements]
                    assert not any("canary" in link for link in links), path
                elif "pipeline_tag" in text:
                    assert "<script>canary" not in text, path
                    assert "[canary](" not in text, path
            shutil.rmtree(workdir)
            assert "canary_of_jaxcnn" not in sys.modules, path
            tried += 1
    assert tried >= 4
