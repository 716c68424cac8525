import dataclasses
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxcnn.cli import tools
from jaxcnn.data import synthetic
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.deploy import own_images
from jaxcnn.errors import UserError
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.trained import Trained, load_trained
from tests import saved

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    return saved.save(tmp_path_factory.mktemp("run"), tiny_mnist, saves=saved.EPOCHS)


@pytest.fixture(scope="module")
def network(workdir: Path) -> Trained:
    return load_trained(workdir)


@pytest.fixture(scope="module")
def scored(network: Trained, tiny_mnist: Dataset) -> tuple[Dataset, int]:
    """Test images whose prediction rounding does not change, and the number of correct ones."""
    images = tiny_mnist.test.images
    logits = saved.exact_logits(network.recipe, network.variables, images)
    second, first = np.sort(logits)[:, -2:].T
    clear, odd = first - second > 1e-4, np.arange(len(images)) % 2
    labels = np.where(odd, logits.argmin(-1), logits.argmax(-1)).astype(np.int32)
    test = Split(images[clear], labels[clear])
    return dataclasses.replace(tiny_mnist, test=test), int(np.sum(clear & (odd == 0)))


def test_evaluate(
    workdir: Path,
    scored: tuple[Dataset, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset, correct = scored
    asked: list[dict] = []
    monkeypatch.setattr(
        "jaxcnn.data.dataset.load_data", lambda name, **rest: asked.append(rest) or dataset
    )
    tools.main(["evaluate", str(workdir), "--data-dir", "/d", "--archive-dir", "/a"])
    out = capsys.readouterr().out
    total = len(dataset.test)
    assert 20 < correct < total - 20
    score = f"{correct} correct of {total} total, accuracy {correct / total:.2%}"
    assert f"test set of mnist: {score}, loss " in out
    assert "step-0000000021" in out
    assert "biased" not in out
    assert "test-time" not in out
    assert (asked[0]["source"], asked[0]["data_dir"]) == ("real", "/d")
    assert asked[0]["archive_dir"] == "/a"
    # The run was another data set's; its checksum says so.
    assert "the data is not that on which the network was trained (mnist)" in out
    tools.main(["evaluate", str(workdir), "--checkpoint", "best", "--tta"])
    out = capsys.readouterr().out
    assert "biased" in out
    plain, averaged = (line for line in out.splitlines() if line.startswith("test set"))
    assert f" correct of {total}" in plain
    assert "with test-time augmentation" not in plain
    assert "with test-time augmentation" in averaged


def test_evaluate_on_the_data_it_was_trained_on(
    workdir: Path,
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **rest: tiny_mnist)
    tools.main(["evaluate", str(workdir)])
    assert "not that on which the network was trained" not in capsys.readouterr().out
    synthetic = dataclasses.replace(tiny_mnist, name="synthetic-mnist", notice="of a test")
    folder = saved.save(tmp_path / "synthetic", synthetic, saves=[7])
    asked: list[str] = []
    monkeypatch.setattr(
        "jaxcnn.data.dataset.load_data", lambda name, source, **_: asked.append(source) or synthetic
    )
    tools.main(["evaluate", str(folder)])
    assert asked == ["synthetic"]
    assert "NOT THE REAL DATA" in capsys.readouterr().out


def test_report(
    workdir: Path,
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the report itself is, test_report sees."""
    written: list[tuple[Any, ...]] = []

    def write(network: Trained, dataset: Dataset, folder: Path, result: Any) -> Path:
        written.append((network.checkpoint.step, dataset, folder, result))
        return folder / "report.html"

    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: tiny_mnist)
    monkeypatch.setattr("jaxcnn.report.page.write_report", write)
    monkeypatch.setattr("jaxcnn.train.records.read_result", lambda folder: {"of": folder})
    monkeypatch.setenv("HOME", str(tmp_path))
    tools.main(["report", str(workdir)])
    tools.main(["report", str(workdir), "--checkpoint", "best", "--out", "~/here"])
    # What the run has come to, it says in its own folder, wherever the report goes.
    result = {"of": workdir}
    assert written == [
        (21, tiny_mnist, workdir, result),
        (14, tiny_mnist, tmp_path / "here", result),
    ]
    out = capsys.readouterr().out
    for folder in (workdir, tmp_path / "here"):
        assert f"report: {folder / 'report.html'}" in out


@pytest.fixture
def paths(tiny_mnist: Dataset, tmp_path: Path) -> list[str]:
    """Image files that are as MNIST's are."""
    paths = []
    for index in range(4):
        image = tiny_mnist.test.images[index].copy()
        image[image < 100] = 0  # as MNIST's ground is
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(image[..., 0]).save(paths[-1])
    return paths


def test_predict(
    workdir: Path,
    network: Trained,
    paths: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tools.main(["predict", str(workdir), *paths, "--prepared", str(tmp_path / "prepared")])
    out = capsys.readouterr().out
    assert out.count("prepared: 28 x 28 pixels to grey; the digit scaled to ") == 4
    assert out.count("@@") > 20  # shown
    images = np.stack([own_images.prepare_image(path, "mnist").image for path in paths])
    for path, row in zip(paths, network.probabilities(images), strict=True):
        first, second, third = np.argsort(-row)[:3]
        others = f"{second} {row[second]:.1%}, {third} {row[third]:.1%}"
        assert f"{path}: {first} ({row[first]:.1%}; then {others})\n" in out
    kept = sorted((tmp_path / "prepared").iterdir())
    assert [path.name for path in kept] == ["001-0.png", "002-1.png", "003-2.png", "004-3.png"]
    for path, image in zip(kept, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image[..., 0])
    assert f"prepared images: {tmp_path / 'prepared'}" in out


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_in_colours(channels: int) -> None:
    """Where there are colours a character cell shows two pixels, one above the other.

    Lines are not wrapped, however narrow the terminal is.
    """
    image = np.arange(4 * 2 * channels, dtype=np.uint8).reshape(4, 2, channels)
    console = Console(force_terminal=True, color_system="truecolor", width=1)
    with console.capture() as shown:
        tools._show(own_images.PreparedImage(image, ()), console)
    lines = shown.get().splitlines()
    assert len(lines) == 2
    pixels = image.repeat(3 // channels, axis=-1)
    for line, upper, lower in zip(lines, pixels[::2], pixels[1::2], strict=True):
        cells = [
            f"\x1b[38;2;{';'.join(map(str, above))};48;2;{';'.join(map(str, below))}m\u2580"
            for above, below in zip(upper, lower, strict=True)
        ]
        assert line.removesuffix("\x1b[0m").replace("\x1b[0m", "") == "".join(cells)


@pytest.mark.parametrize("colours", [None, "standard"])
def test_an_image_in_characters(colours: Any) -> None:
    image = np.zeros((4, 9, 1), np.uint8)
    image[:, -1] = 255
    console = Console(force_terminal=colours is not None, color_system=colours, width=5)
    with console.capture() as shown:
        tools._show(own_images.PreparedImage(image, ()), console)
    assert shown.get() == 4 * f"{16 * ' '}@@\n"


def test_export(workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.onnx"
    argv = ["export", str(workdir), "--format", "onnx", "--out", str(path)]
    tools.main([*argv, "--checkpoint", "best"])
    out = capsys.readouterr().out
    assert "step-0000000014" in out
    assert f"{path}: {path.stat().st_size / 2**20:.1f} MiB, ONNX of opset 17, by jaxcnn" in out
    assert f"{path}.md: the model card" in out
    assert "which biases it upwards" in Path(f"{path}.md").read_text()
    tools.main(argv)
    assert "step-0000000021" in capsys.readouterr().out
    assert "biases" not in Path(f"{path}.md").read_text()


@pytest.fixture
def opened(tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser is asked to open."""
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda *_, **__: tiny_mnist)
    return addresses


def test_demo(
    workdir: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tools.main(["demo", str(workdir), "--checkpoint", "14"])
    path = workdir / "demo.html"
    size = path.stat().st_size / 1e6
    said = f"{path}: {size:.1f} MB, a page that needs no server and no network\n"
    assert said in capsys.readouterr().out
    assert "step 14" in path.read_text()
    assert 'id="train"' in path.read_text()
    path.unlink()
    assert opened == [path.as_uri()]
    argv = ["demo", str(workdir), "--out", str(tmp_path / "x.html"), "--no-open"]
    tools.main([*argv, "--no-training-set"])
    assert 'id="train"' not in (tmp_path / "x.html").read_text()
    assert len(opened) == 1
    assert not path.exists()


def test_a_page_is_exported(
    workdir: Path, tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export", str(workdir), "--format", "html", "--out", str(tmp_path / "x.html")]
    tools.main(argv)
    assert "step 21" in (tmp_path / "x.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]  # and no card
    assert opened == []
    argv[-1] = str(tmp_path / "x.onnx")
    capsys.readouterr()
    ends_with_status_two(lambda: tools.main(argv), "does not end in .html", capsys)


def test_a_page_without_the_data(
    workdir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object, **__: object) -> Dataset:
        raise UserError("no data here: look elsewhere")

    monkeypatch.setattr("jaxcnn.data.dataset.load_data", load)
    argv = ["demo", str(workdir), "--no-open", "--out", str(tmp_path / "x.html")]
    tools.main(argv)
    said = "the page has no images of the data set: no data here: look elsewhere\n"
    assert said in capsys.readouterr().out
    assert "so this page has no images of it" in (tmp_path / "x.html").read_text()
    (tmp_path / "x.html").unlink()
    with pytest.raises(SystemExit) as caught:
        tools.main([*argv, "--archive-dir", str(tmp_path)])  # which was asked for
    assert caught.value.code == 2
    assert not list(tmp_path.iterdir())


MALFORMED: list[tuple[list[str], str]] = [
    ([], "landscape, predict, export, demo"),
    (["score"], "score"),
    (["evaluate"], "WORKDIR"),
    (["evaluate", "x", "y"], "Unrecognized options: y"),
    (["demo", "/nowhere", "--port", "80"], "--port"),
    (["export", "/nowhere", "--format", "x", "--out", "y"], "'x'"),
]


@pytest.mark.parametrize(("argv", "named"), MALFORMED)
def test_a_malformed_command_line_gets_tyro_s_message(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        tools.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert "jaxcnn" in err  # with --help
    assert "Traceback" not in err


MISTAKES: list[tuple[list[str], str]] = [
    (["evaluate", "/nowhere"], "holds no checkpoint"),
    (["report", "/nowhere"], "holds no checkpoint"),
    (["landscape", "/nowhere"], "holds no checkpoint"),
    (["landscape", "/nowhere", "--checkpoint", "all"], "holds no checkpoint"),
    (["landscape", "/nowhere", "--eigenvalues", "0"], "--eigenvalues takes a whole number"),
    (["predict", "/nowhere"], "at least one image"),
    (["predict", "/nowhere", "x.png"], "holds no checkpoint"),
    (["demo", "/nowhere"], "holds no checkpoint"),
    (["demo", "/nowhere", "--out", "x.htm"], "does not end in .html"),
    (["demo", "/nowhere", "--out", "/nowhere/x.html"], "is not there"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES)
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with_status_two(lambda: tools.main(argv), message, capsys)


def ends_with_status_two(
    command: Callable[[], Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jaxcnn", "demo", "/nowhere"])
    run = lambda: runpy.run_module("jaxcnn", run_name="__main__")  # noqa: E731
    ends_with_status_two(run, "holds no checkpoint", capsys)
    runpy.run_module("jaxcnn.__main__", run_name="imported")  # and does nothing


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tools.main(["demo", "--help"])
    assert not caught.value.code
    out = capsys.readouterr().out
    for part in (
        "WORKDIR",
        "--checkpoint",
        "latest|best|STEP",
        "--out",
        "demo.html",
        "--no-training-set",
        "--no-open",
    ):
        assert part in out


def test_a_file_that_is_no_image(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_text("text")
    argv = ["predict", str(workdir), str(tmp_path / "x.png")]
    ends_with_status_two(lambda: tools.main(argv), "cannot be read as an image", capsys)


def test_a_folder_that_cannot_be_written(
    workdir: Path, paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit) as caught:
        tools.main(["predict", str(workdir), paths[0], "--prepared", str(tmp_path / "taken")])
    assert caught.value.code == 2
    assert "give --prepared" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_trained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = [
        Split(*synthetic.generate_split("mnist", split, size=size))
        for split, size in (("train", 2000), ("test", 500))
    ]
    dataset = Dataset("mnist", "drawn", *splits, tuple("0123456789"))
    workdir = tmp_path / "run"
    recipe = named.recipe("mnist", "fast").replace(epochs=12, batch_size=64)
    policy = checkpoint.Policy(workdir / "checkpoints")
    result = fit(recipe, dataset, checkpoints=policy)
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: dataset)
    tools.main(["evaluate", str(workdir), "--tta"])
    out = capsys.readouterr().out
    plain, averaged = (line for line in out.splitlines() if line.startswith("test set"))
    assert f"{result.test_correct} correct of 500 total, accuracy" in plain
    assert "with test-time augmentation" in averaged
    assert "step-0000000384" in out
    paths = [str(tmp_path / f"{index}.png") for index in range(20)]
    for path, image in zip(paths, dataset.test.images, strict=False):
        # Larger, dark on light, and away from the middle.
        digit = Image.fromarray(255 - image[..., 0]).resize((112, 112))
        page = Image.new("L", (300, 200), 255)
        page.paste(digit, (170, 20))
        page.save(path)
    tools.main(["predict", str(workdir), *paths])
    out = capsys.readouterr().out
    correct = sum(f"{path}: {dataset.test.labels[i]} (" in out for i, path in enumerate(paths))
    assert correct >= 15  # 19 are; by chance 2 would be


# Each fails at another place of a path.
IMPOSSIBLE = ["~nosuchuser/x", "n" * 300, "file/below", "loop/x", "a\0b", "/proc/jaxcnn/x"]


@pytest.mark.usefixtures("undrawn", "unpredicted")
@pytest.mark.parametrize("path", IMPOSSIBLE)
@pytest.mark.parametrize(
    "argv",
    [
        "evaluate PATH",
        "evaluate RUN --data-dir PATH",
        "report PATH",
        "report RUN --out PATH",
        "landscape RUN --out PATH",
        "predict PATH picture.png",
        "predict RUN PATH",
        "predict RUN picture.png --prepared PATH",
        "export PATH --format safetensors --out x.safetensors",
        "export RUN --format safetensors --out PATH.safetensors",
        "export RUN --format html --out PATH.html",
        "demo PATH",
        "demo RUN --out PATH.html",
        "demo RUN --out x.html --data-dir PATH",
    ],
)
def test_paths_that_cannot_be(
    argv: str,
    path: str,
    workdir: Path,
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    digit = np.full((40, 40), 255, np.uint8)
    digit[10:30, 18:22] = 0
    Image.fromarray(digit).save("picture.png")
    if "--data-dir" not in argv:
        monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda *_, **__: tiny_mnist)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        tools.main(
            [part.replace("PATH", path).replace("RUN", str(workdir)) for part in argv.split(" ")]
        )
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert path[:60].split("\0")[0].removesuffix("/x") in said
    assert sorted(tmp_path.rglob("*")) == before
