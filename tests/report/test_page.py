import base64
import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from experiments import mnist
from jaxcnn.cli import tools
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.report.page import write_report
from jaxcnn.train.result import Result
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.page import Page, fetched

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

FIGURES = (
    "samples learning-curves feature-maps kernels confusion mistakes reliability classes".split()
)
PARAMETERS = {"mnist": "207,258", "cifar10": "554,890"}


@pytest.fixture(scope="module", params=["mnist", pytest.param("cifar10", marks=pytest.mark.slow)])
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
) -> tuple[Path, Dataset]:
    """A workdir with a report, and the data set."""
    dataset = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[request.param]
    augment = {"mnist": "shift", "cifar10": "flip-shift"}[request.param]  # quicker than distort
    folder = saved.save(tmp_path_factory.mktemp("run"), dataset, augment=augment)
    write_report(load_trained(folder), dataset, folder)
    return folder, dataset


@pytest.fixture(scope="module", params=["mnist", "cifar10"])
def unseen(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
) -> tuple[Path, Trained, Dataset]:
    """A workdir, its network with predictions that it need not compute, and the data set."""
    dataset = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[request.param]
    folder = saved.save(tmp_path_factory.mktemp("run"), dataset)
    network = load_trained(folder)
    # A cached property of the frozen object: the function from images to logits.
    vars(network)["_predict"] = lambda variables, images: (
        5 * np.eye(10)[np.arange(len(images)) % 10]
    )
    return folder, network, dataset


def test_the_page_needs_nothing_else(run: tuple[Path, Dataset]) -> None:
    folder, dataset = run
    text = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://""", text)
    assert fetched(text) == []
    page = Page(text)
    assert page.open == []
    images = page.all("img")
    assert len(images) == len(FIGURES)
    assert all(len(image.attributes["alt"]) > 10 for image in images)
    for part in (dataset.name, "expected calibration error", "Recipe", "jaxlib"):
        assert part in text
    assert PARAMETERS[dataset.name] in text


def test_every_image_shows_something_in_its_size(run: tuple[Path, Dataset]) -> None:
    folder, _ = run
    page = Page((folder / "report.html").read_text())
    for name in FIGURES:
        path = folder / f"{name}.png"
        image = np.asarray(Image.open(path).convert("L"))
        assert min(image.shape) > 100
        assert image.std() > 5, name
        (shown,) = [one for one in page.by_id(name).inside if one.tag == "img"]
        data = shown.attributes["src"].removeprefix("data:image/png;base64,")
        assert base64.b64decode(data) == path.read_bytes()
        # Drawn with 130 dots an inch; an inch of CSS has 96 pixels.
        for side, size in zip(("height", "width"), image.shape, strict=True):
            assert abs(float(shown.attributes[side]) - size / 130 * 96) <= 0.5


@pytest.mark.slow
def test_one_command_writes_it_again(
    run: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, dataset = run
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: dataset)
    tools.main(["report", str(folder), "--out", str(tmp_path)])
    assert {f"{name}.png" for name in FIGURES} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "report.html").read_text() == (folder / "report.html").read_text()


def rows(page: Page, name: str) -> list[list[str]]:
    """The cells of a section's table."""
    return [
        [cell.text for cell in row.inside if cell.tag in ("td", "th")]
        for row in page.by_id(name).inside
        if row.tag == "tr"
    ]


def facts(page: Page) -> dict[str, str]:
    """The page's tables of two columns."""
    tables = [one for one in page.all("table") if one.attributes.get("class") == "facts"]
    cells = [one.text for table in tables for one in table.inside if one.tag == "td"]
    return dict(zip(cells[::2], cells[1::2], strict=True))


def summary(page: Page) -> dict[str, str]:
    """The metrics at the top of the page."""
    names, values = page.all("dt"), page.all("dd")
    return {name.text: value.text for name, value in zip(names, values, strict=True)}


def test_content_of_the_page(
    unseen: tuple[Path, Trained, Dataset], undrawn: list[Path], tmp_path: Path
) -> None:
    _, network, dataset = unseen
    path = write_report(network, dataset, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert undrawn == [path.parent]
    page = Page(path.read_text())
    labels = dataset.test.labels
    correct = int((np.arange(len(labels)) % 10 == labels).sum())
    share = f"{correct / len(labels):.2%}"
    title = {"mnist": "MNIST", "cifar10": "CIFAR-10"}[dataset.name]
    assert [one.text for one in page.all("h1")] == [f"{title}: {share} test accuracy"]
    assert summary(page) == {
        "test accuracy": share,
        "correct predictions": f"{correct}/{len(labels)}",
        "parameters": PARAMETERS[dataset.name],
        "training time": "34.5 s",
        "steps": "21",
    }
    assert (
        "recipe fast, 3 of 3 epochs with sgd, seed 0; the run is not finished"
        in page.all("header")[0].text
    )
    assert (
        f"Over all test images, {share} of the predictions are correct."
        in page.by_id("classes").text
    )
    assert page.by_id("command").text.split() == ["Command", "not", "recorded"]
    names = "epoch|step|learning rate|train loss|train accuracy|test loss|test accuracy|seconds"
    assert rows(page, "epochs") == [
        names.split("|"),
        ["1", "7", "0.1", "2.5000", "40.00%", "2.0000", "50.00%", "11.50"],
        ["2", "14", "0.05", "1.2500", "60.00%", "1.0000", "70.00%", "11.50"],
        ["3", "21", "0.0333", "0.8333", "50.00%", "0.6667", "60.00%", "11.50"],
    ]
    # Each confidence is e^5 / (e^5 + 9), in one bin.
    confidence = np.exp(5) / (np.exp(5) + 9)
    said = facts(page)
    for key, value in {
        "data set": f"{dataset.name} tiny",
        "training images": f"{len(dataset.train)}",
        "test images": f"{len(dataset.test)}",
        "expected calibration error": f"{confidence - correct / len(labels):.2%}",
        "compilation time": "2.0 s",
        "evaluation time": "2.0 min",
        "device": "cpu (of a test)",
        "optimizer": "sgd",
        "optimizer_args": "none",
        "mean": {"mnist": "0.1307", "cifar10": "0.4914, 0.4822, 0.4465"}[dataset.name],
        "seed": "0",
        "dtype": "float32",
    }.items():
        assert said[key] == value, key
    images = page.all("img")
    assert {(one.attributes["width"], one.attributes["height"]) for one in images} == {
        ("96", "192")
    }
    order = [one.attributes["id"] for one in page.all("section") if "id" in one.attributes]
    expected = "samples learning-curves feature-maps kernels confusion reliability mistakes classes"
    assert order == [*expected.split(), "epochs", "layers", "command"]
    pairs = [one for one in page.all("div") if one.attributes.get("class") == "pair"]
    assert [one.attributes.get("id") for one in pairs[0].inside if one.tag == "section"] == [
        "confusion",
        "reliability",
    ]


@pytest.mark.usefixtures("undrawn")
def test_layers(unseen: tuple[Path, Trained, Dataset], tmp_path: Path) -> None:
    _, network, dataset = unseen
    head, *layers, total = rows(
        Page(write_report(network, dataset, tmp_path).read_text()), "layers"
    )
    assert head == ["layer", "shapes", "parameters"]
    assert total == ["total", "", PARAMETERS[dataset.name]]
    if dataset.name == "mnist":
        assert [layer[0] for layer in layers] == ["conv1", "conv2", "fc1", "fc2"]
        assert layers[2] == ["fc1", "bias 512, kernel 392 x 512", "201,216"]
    else:
        blocks = [f"{kind}{layer}" for layer in range(1, 6) for kind in ("conv", "batch_norm")]
        assert [layer[0] for layer in layers] == [*blocks, "fc1", "fc2"]
        assert layers[1] == ["batch_norm1", "bias 4, scale 4", "8"]


@pytest.mark.parametrize("unseen", ["mnist"], indirect=True)
@pytest.mark.usefixtures("undrawn")
def test_the_page_follows_its_arguments(
    unseen: tuple[Path, Trained, Dataset], tmp_path: Path
) -> None:
    _, network, dataset = unseen

    def write(
        network: Trained = network,
        dataset: Dataset = dataset,
        result: Mapping[str, Any] = {},
    ) -> str:
        return write_report(network, dataset, tmp_path, result).read_text()

    text = write()
    assert write() == text
    assert "a synthetic data set" not in text
    assert "as it is and with three random augmentations" in text
    assert "the recipe has no augmentation" not in text
    text = write(dataset=dataclasses.replace(dataset, name=f"synthetic-{dataset.name}"))
    assert (
        "Trained on synthetic-mnist, a synthetic data set: nothing on this page holds for MNIST."
        in text
    )
    recipe = network.recipe.replace(augment="none", optimizer_args={"b1": 0.8, "nesterov": True})
    text = write(network=dataclasses.replace(network, recipe=recipe))
    assert "three random augmentations" not in text
    assert "the recipe has no augmentation" in text
    assert facts(Page(text))["optimizer_args"] == "b1=0.8, nesterov=True"
    assert "the run is not finished" in text
    text = write(result={"command": "python x.py --flag <b>"})
    assert "the run is not finished" not in text
    assert Page(text).by_id("command").text.split()[1:] == "python x.py --flag <b>".split()


@pytest.mark.parametrize("unseen", ["mnist"], indirect=True)
@pytest.mark.usefixtures("undrawn")
def test_more_images_than_fit_one_call(
    unseen: tuple[Path, Trained, Dataset], tmp_path: Path
) -> None:
    """All of them are predicted, in calls of at most 500."""
    _, network, dataset = unseen
    test = Split(np.tile(dataset.test.images, (17, 1, 1, 1)), np.tile(dataset.test.labels, 17))
    assert len(test) % 500
    sizes: list[int] = []
    predict = network._predict

    def counted(variables: Any, images: Any) -> Any:
        sizes.append(len(images))
        return predict(variables, images)

    counting = dataclasses.replace(network)
    vars(counting)["_predict"] = counted
    write_report(counting, dataclasses.replace(dataset, test=test), tmp_path)
    assert sum(sizes) == len(test)
    assert max(sizes) == 500


ARGV = "--epochs 3 --batch-size 50 --optimizer sgd --no-compilation-cache --workdir".split()


@pytest.mark.usefixtures("undrawn")
def test_an_experiment_writes_one_by_default(
    tiny_mnist: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a checkpoint that is there for what `fit` would train."""

    def fit(recipe: Any, dataset: Dataset, *, checkpoints: Any, **_: Any) -> Result:
        network = load_trained(saved.save(checkpoints.folder.parent, dataset))
        return Result(
            state=cast(Any, SimpleNamespace(eval_variables=network.variables)),
            history=(),
            test_correct=42,
            test_total=70,
            parameters=207_258,
            train_seconds=1.0,
            eval_seconds=1.0,
            compile_seconds=1.0,
            images_per_second=1.0,
        )

    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: tiny_mnist)
    monkeypatch.setattr("jaxcnn.fit", fit)
    mnist.main([*ARGV, str(tmp_path / "with"), "--tta"])
    assert f"report: {tmp_path / 'with' / 'report.html'}" in capsys.readouterr().out
    text = (tmp_path / "with" / "report.html").read_text()
    assert "not recorded" not in text  # the command
    assert "is not finished" not in text
    result = json.loads((tmp_path / "with" / "result.json").read_text())
    names = list(summary(Page(text)))
    assert names[:2] == ["test accuracy", "with test-time augmentation"]
    shown = summary(Page(text))["with test-time augmentation"]
    assert shown == f"{result['tta_test_accuracy']:.2%}"
    mnist.main([*ARGV, str(tmp_path / "without"), "--report", "never"])
    assert not list((tmp_path / "without").glob("*.[hp][tn][mg]*"))


@pytest.mark.slow
def test_a_trained_network_has_one(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **_: tiny_mnist)
    argv = ["--epochs", "1", "--batch-size", "30", "--no-compilation-cache", "--workdir"]
    mnist.main([*argv, str(tmp_path / "with"), "--tta"])
    assert f"report: {tmp_path / 'with' / 'report.html'}" in capsys.readouterr().out
    text = (tmp_path / "with" / "report.html").read_text()
    assert "not recorded" not in text  # the command
    assert "is not finished" not in text
    assert "with test-time augmentation" in text
    mnist.main([*argv, str(tmp_path / "without"), "--report", "never"])
    assert not list((tmp_path / "without").glob("*.[hp][tn][mg]*"))


LOOK = """<script>
addEventListener("load", () => {
  const images = [...document.images].filter(image => image.complete && image.naturalWidth > 0);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = `shown ${images.length} of ${document.images.length}, too wide ${wide}`;
});
</script>"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_shows_it(run: tuple[Path, Dataset], tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: install chromium or google-chrome")
    folder, _ = run
    page = tmp_path / "page.html"
    page.write_text((folder / "report.html").read_text() + LOOK)
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    count = len(FIGURES)
    assert f"<title>shown {count} of {count}, too wide false</title>" in done.stdout
