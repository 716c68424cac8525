import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn import checkpoint, cli, commands, data, recipes, report, trained, training
from jaxcnn.data import Dataset

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

PICTURES = (
    "samples learning-curves feature-maps kernels confusion mistakes reliability classes".split()
)


@pytest.fixture(scope="module", params=["mnist", "cifar10"])
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
) -> tuple[Path, Dataset]:
    """A workdir with a report, and the data set."""
    dataset = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[request.param]
    recipe = recipes.get(request.param, "fast").replace(epochs=2, batch_size=30)
    folder = tmp_path_factory.mktemp("run")
    training.fit(recipe, dataset, checkpoints=checkpoint.Policy(folder / "checkpoints"))
    report.write(trained.load(folder), dataset, folder)
    return folder, dataset


class Page(HTMLParser):
    """Collects what matters of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(run: tuple[Path, Dataset]) -> None:
    folder, dataset = run
    text = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://""", text)
    page = Page(text)
    assert page.open == []
    assert len(page.images) == len(PICTURES)
    assert all(len(image["alt"] or "") > 10 for image in page.images)
    for part in (dataset.name, "expected calibration error", "Recipe", "jaxlib", "554,890 207,258"):
        assert any(word in text for word in part.split(" ")), part


def test_every_picture_shows_something(run: tuple[Path, Dataset]) -> None:
    folder, _ = run
    for name in PICTURES:
        image = np.asarray(Image.open(folder / f"{name}.png").convert("L"))
        assert min(image.shape) > 100
        assert image.std() > 5, name


def test_one_command_draws_them_again(
    run: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, dataset = run
    monkeypatch.setattr(data, "load", lambda name, **_: dataset)
    commands.main(["report", str(folder), "--out", str(tmp_path)])
    assert {f"{name}.png" for name in PICTURES} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "report.html").read_text() == (folder / "report.html").read_text()


def test_a_stand_in_is_marked(run: tuple[Path, Dataset], tmp_path: Path) -> None:
    folder, dataset = run
    fields = {**vars(dataset), "name": f"synthetic-{dataset.name}"}
    path = report.write(trained.load(folder), Dataset(**fields), tmp_path)
    assert "is a drawn stand-in" in path.read_text()
    assert "is a drawn stand-in" not in (folder / "report.html").read_text()


def test_an_experiment_leaves_one_unless_told_not_to(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(data, "load", lambda name, **_: tiny_mnist)
    argv = ["--epochs", "1", "--batch-size", "30", "--no-compilation-cache", "--workdir"]
    cli.main("mnist", [*argv, str(tmp_path / "with"), "--tta"])
    assert f"report: {tmp_path / 'with' / 'report.html'}" in capsys.readouterr().out
    text = (tmp_path / "with" / "report.html").read_text()
    assert "not recorded" not in text  # the command
    assert "has not come to its end" not in text
    assert "with test-time augmentation" in text
    cli.main("mnist", [*argv, str(tmp_path / "without"), "--report", "never"])
    assert not list((tmp_path / "without").glob("*.[hp][tn][mg]*"))


LOOK = """<script>
addEventListener("load", () => {
  const images = [...document.images].filter(image => image.complete && image.naturalWidth > 0);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = `shown ${images.length} of ${document.images.length}, too wide ${wide}`;
});
</script>"""


@pytest.mark.parametrize("width", [375, 1280])
def test_a_browser_shows_it(run: tuple[Path, Dataset], tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
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
        timeout=120,
    )
    count = len(PICTURES)
    assert f"<title>shown {count} of {count}, too wide false</title>" in done.stdout
