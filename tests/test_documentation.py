"""The documentation: its command lines parse, its links and names resolve, its code runs."""

import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import jaxcnn
from jaxcnn.arena import load_scores, markdown_table
from jaxcnn.cli import tools
from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.study import parse_study_flags
from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy.export import write_export
from jaxcnn.recipes.recipe import NetworkName, Recipe
from jaxcnn.train import load_trained
from tests import conformance, saved
from tests.conftest import REPOSITORY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = ("scores.html",)  # by docs/scores_page.py, on the site only
# The code of these runs among the quick tests.
QUICK = ("README", "index", "data", "recipes")


def blocks(page: Path, language: str = "") -> list[str]:
    """The contents of a page's blocks of code."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def command_lines(program: str) -> list[list[str]]:
    """The arguments of a program, wherever a page calls it."""
    calls = []
    for page in PAGES:
        for line in "\n".join(blocks(page)).replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if program in line else []
            if program in words:
                argv = words[words.index(program) + 1 :]
                calls.append([word.replace("$names", "sgd") for word in argv])  # of the shell
    return calls


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the recipe file of the documentation."""
    (tmp_path / "mine.toml").write_text(*blocks(DOCS / "recipes.md", "toml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_experiments(network: NetworkName, folder: Path) -> None:
    calls = command_lines(f"experiments/{network}.py")
    assert len(calls) >= 5
    for argv in calls:
        if "--help" not in argv:
            parse_flags(network, argv)


def test_studies() -> None:
    calls = command_lines("experiments/optimizers.py")
    assert len(calls) >= 8
    for argv in calls:
        parse_study_flags(argv)


def test_the_command_jaxcnn() -> None:
    calls = command_lines("jaxcnn")
    commands = set("evaluate predict export report landscape demo find-rate doctor arena".split())
    assert {argv[0] for argv in calls} == commands
    for argv in calls:
        tools.parse_command(argv)


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"https?:", target) and target not in GENERATED:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_and_every_name_is_there() -> None:
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(
            r"(?<![\w/.])(?:benchmarks|experiments|jaxcnn|tests)/[\w/.-]*\w", text
        ):
            assert (REPOSITORY / path).exists(), f"{page.name}: {path}"
        for module in re.findall(r"python -m tests\.(\w+)", text):
            assert (REPOSITORY / "tests" / f"{module}.py").exists(), f"{page.name}: {module}"
        for name in re.findall(r"(?<![\w/])jaxcnn(?:\.[A-Za-z]\w*)+", text):
            pkgutil.resolve_name(name)


def test_the_first_page_stays_one() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    assert len(lines) <= 160
    tables = re.findall(r"(?:^\|.*\n)+", "\n".join(lines), re.MULTILINE)
    assert tables
    assert all(table.count("\n") <= 2 + 10 for table in tables)  # below head and rule


def test_the_first_optimizers_are_those_of_the_arena() -> None:
    (track,) = load_scores(REPOSITORY / "benchmarks/results/arena")
    assert f"\n\n{markdown_table(track)}\n\n" in (REPOSITORY / "README.md").read_text()
    every = markdown_table(track, len(track.scores))
    assert f"\n\n{every}\n\n" in (DOCS / "leaderboard.md").read_text()


@pytest.mark.parametrize("name", ["throughput-cpu", "study-cifar10/learning-curves"])
def test_images_of_results_are_those_of_the_benchmarks(name: str) -> None:
    shown = DOCS / "images" / f"{name.replace('/', '-')}.png"
    assert shown.read_bytes() == (REPOSITORY / "benchmarks/results" / f"{name}.png").read_bytes()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.slow] * (page.stem not in QUICK))
        for page in PAGES
        if blocks(page, "python")
    ],
)
def test_the_code_of_a_page_runs(
    page: Path,
    folder: Path,
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From top to bottom, on small data sets, with recipes of one epoch and of a small network."""
    datasets = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}

    def small(network: NetworkName, name: str) -> Recipe:
        # The batch divides the 330 images: one program to compile rather than two.
        return conformance.RECIPE.replace(name=name, epochs=1, batch_size=66, optimizer="sgd")

    monkeypatch.setattr("jaxcnn.load_data", datasets.get)
    monkeypatch.setattr("jaxcnn.recipe", small)
    if page.stem not in ("checkpoints", "deployment"):  # these load a network from its workdir
        monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: conformance.SmallCNN())
    if page.stem == "deployment":
        pytest.importorskip("onnxruntime", reason="pip install 'jaxcnn[slow]'")
        pytest.importorskip("torch", reason="pip install 'jaxcnn[torch]'")
        network = load_trained(saved.save(folder / "run", tiny_mnist))
        for form in ("onnx", "stablehlo", "safetensors"):
            write_export(network, form, folder / f"mnist.{form}")
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    prints = "\n".join(blocks(page, "python")).count("print(")
    assert len(printed) >= prints
    if page.stem == "README":
        assert printed[0].endswith(" of 70")


@pytest.mark.slow
@pytest.mark.parametrize(("position", "name"), [(0, "pandas"), (1, "wandb")])
@pytest.mark.filterwarnings("default")  # of the package
def test_the_code_for_an_optional_package_runs(
    position: int, name: str, folder: Path, tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    recipe = conformance.RECIPE.replace(epochs=2, batch_size=66, optimizer="sgd")
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: conformance.SmallCNN())
    namespace: dict[str, Any] = {"jaxcnn": jaxcnn, "dataset": tiny_mnist, "recipe": recipe}
    exec(compile(blocks(DOCS / "hooks.md", "py")[position], name, "exec"), namespace)
    if name == "pandas":
        assert len(namespace["last"]) == 8
    else:
        assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
