"""Canaries in every field of every file of a run: none sings, whichever command opens it."""

import contextlib
import copy
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments import mnist
from jaxcnn.cli import tools
from jaxcnn.cli.study import main as study_main
from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy.page import render_page
from jaxcnn.errors import UserError
from jaxcnn.storage import checkpoint, manifest
from jaxcnn.storage.manifest import short_digest
from jaxcnn.study.runs import RUNS
from jaxcnn.study.specification import SPECIFICATION
from jaxcnn.train.trained import Trained, load_trained
from tests import saved, scores
from tests.page import Page
from tests.storage.test_manifest import forge

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


def plant_in(file: Path, path: tuple[Any, ...], canary: Any) -> None:
    """Plants it in a file; a manifest has the digest of what it says then."""
    if file.name == manifest.NAME:
        forge(lambda there: plant(there, path, canary))(file.parent)
    else:
        changed = json.loads(file.read_text())
        plant(changed, path, canary)
        file.write_text(json.dumps(changed))


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
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **options: tiny_mnist)
    monkeypatch.setattr("jaxcnn.train.evaluate.evaluate", lambda *_, **__: (1, 2, 0.5))
    maps = {"conv1": np.zeros((1, 14, 14, 4), np.float32)}
    monkeypatch.setattr(Trained, "feature_maps", lambda *_: maps)
    yield
    assert "canary_of_jaxcnn" not in sys.modules


# Files of a run, and those among them that have a digest of their own.
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
            tools.main(argv)
        except SystemExit as end:
            assert end.code == 2
            said = capsys.readouterr().err
            assert len(said.splitlines()) == 1, said
        yield capsys.readouterr().out
    for file in (workdir / "report.html", workdir / "x.safetensors.md"):
        if file.exists():
            yield file.read_text()
    with contextlib.suppress(UserError):
        page = render_page(load_trained(workdir), None)
        # The song may occur in the weights by chance.
        yield re.sub('"data":"[A-Za-z0-9+/=]*"', "", page)


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
            plant_in(workdir / FILES[name], path, canary)
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


@pytest.mark.parametrize("name", [SPECIFICATION, RUNS])
def test_no_canary_of_a_study_sings(
    name: str,
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether it is resumed or joined with another one."""
    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
    monkeypatch.setattr("jaxcnn.study.plots.write_plots", lambda *_: [])
    flags = "--learning-rates 0.02 --seeds 2 --tune-seeds 1 --epochs 1".split()
    flags += "--batch-size 30 --validation 60 --no-compilation-cache".split()
    sound = tmp_path / "sound"
    for optimizer in ("sgd", "adamw"):
        argv = ["--optimizers", optimizer, *flags, "--workdir", str(sound / optimizer)]
        study_main(argv)
    file = sound / "adamw" / name
    lines = file.read_text().splitlines() if name == RUNS else [file.read_text()]
    content = json.loads(lines[-1])
    tried = 0
    for path in fields(content):
        for canary in (CODE, MARKUP + CONTROL):
            changed = copy.deepcopy(content)
            plant(changed, path, canary)
            if name == RUNS and path != ("digest",):
                del changed["digest"]
                changed["digest"] = short_digest(json.dumps(changed))
            workdir = Path(shutil.copytree(sound, tmp_path / "study"))
            parts = [str(workdir / optimizer) for optimizer in ("sgd", "adamw")]
            (workdir / "adamw" / name).write_text("\n".join([*lines[:-1], json.dumps(changed), ""]))
            for command in (
                ["--optimizers", "adamw", *flags, "--workdir", parts[1]],
                ["--join", *parts, "--workdir", str(tmp_path / "joined")],
            ):
                with contextlib.suppress(SystemExit):
                    study_main(command)
                out, err = capsys.readouterr()
                tables = [path.read_text() for path in tmp_path.glob("*/**/*.md")]
                for text in (out, err, *tables):
                    assert str(SONG) not in text, path
                    assert "\x1b" not in text, path
                    assert "<script>" not in "".join(tables), path
                assert len(err.splitlines()) <= 1, path
            for folder in (workdir, tmp_path / "joined"):
                shutil.rmtree(folder, ignore_errors=True)
            tried += 1
    assert tried > 20


def test_no_canary_of_an_entry_sings(
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether it is verified, merged or shown."""
    run = {"seed": 0, "diverged_at": 0, "correct": 9, "total": 70, "loss": 0.5, "progress": [0.5]}

    def train(self: Any, phase: str, points: Any, *data: Any) -> list[dict[str, Any]]:
        return [run | {"seed": seed} for _, seed in points]

    monkeypatch.setattr("jaxcnn.arena.phases.Trainer.train", train)
    flags = "--optimizers sgd --trials 2 --seeds 1 --validation 60 --no-compilation-cache".split()
    sound = tmp_path / "sound"
    tools.main(["arena", "mnist-sprint", *flags, "--workdir", str(sound)])
    content = json.loads((sound / "mnist-sprint/sgd.json").read_text())
    for path in [*fields(content), ("optimizer",)]:
        for canary in (CODE, MARKUP + CONTROL):
            changed = copy.deepcopy(content)
            plant(changed, path, canary)
            if path != ("digest",):
                del changed["digest"]
                changed["digest"] = short_digest(json.dumps(changed))
            workdir = Path(shutil.copytree(sound, tmp_path / "entries"))
            file = workdir / "mnist-sprint/sgd.json"
            file.write_text(json.dumps(changed))
            for command in (
                ["verify", str(file), "--no-compilation-cache"],
                ["merge", str(workdir), "--workdir", str(tmp_path / "merged")],
                ["mnist-sprint", *flags, "--workdir", str(workdir)],
            ):
                with contextlib.suppress(SystemExit):
                    tools.main(["arena", *command])
                out, err = capsys.readouterr()
                for text in (out, err):
                    assert str(SONG) not in text, path
                    assert "\x1b" not in text, path
                assert len(err.splitlines()) <= 1, path
            for folder in (workdir, tmp_path / "merged"):
                shutil.rmtree(folder, ignore_errors=True)


def read_header(file: Path) -> tuple[dict[str, Any], bytes]:
    """Returns the header of a safetensors file and the bytes after it."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def test_no_canary_of_what_is_resumed_sings(
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the manifest, and in the header of the file of arrays."""

    def far_enough(*_: object, **__: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr("jaxcnn.train.run_program.RunProgram.compile", far_enough)
    argv = "--epochs 3 --batch-size 50 --optimizer sgd --clip 1.0 --data mnist".split()
    argv += ["--no-compilation-cache", "--workdir"]
    resumed = tmp_path / "resumed"
    for part in (manifest.NAME, checkpoint.ARRAYS):
        relative = f"checkpoints/step-0000000021/{part}"
        sealed = part == manifest.NAME
        if sealed:
            places = list(fields(json.loads((sound / relative).read_text())["content"]))
        else:
            places = list(fields(read_header(sound / relative)[0]))
        # The entries of the arrays are alike, in the manifest and in the header.
        compared = [path for path in places if path[0] in ("run", "progress")]
        compared += [path for path in places if path[0] == "leaves"][:4]
        for path in compared if sealed else places[:8]:
            for canary in (CODE,) if sealed else (CODE, CONTROL):
                workdir = Path(shutil.copytree(sound, resumed))
                (workdir / "result.json").unlink()
                file = workdir / relative
                if sealed:
                    plant_in(file, path, canary)
                else:
                    header, numbers = read_header(file)
                    plant(header, path, canary)
                    text = json.dumps(header).encode()
                    file.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
                    entry = manifest._digests(file.parent, [part])
                    forge(lambda there, entry=entry: there["files"].update(entry))(file.parent)
                with pytest.raises(SystemExit):
                    mnist.main([*argv, str(workdir)])
                out, err = capsys.readouterr()
                assert len(err.splitlines()) == 1, path
                assert "Traceback" not in err, path
                assert "\x1b" not in out + err, path
                shutil.rmtree(workdir)
