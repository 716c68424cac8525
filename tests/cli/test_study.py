import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import optax
import pytest

from jaxcnn.cli.study import main, parse_study_flags, run_study_flags
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import environment
from jaxcnn.recipes import named
from jaxcnn.study.runs import Run
from jaxcnn.study.specification import Study, load_specification
from tests import scores
from tests.conftest import REPOSITORY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(params=["scores", pytest.param("network", marks=pytest.mark.slow)])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets studies make their scores up and draw nothing, or train and draw."""

    def write(plan: Study, runs: list[Run], folder: Path) -> None:
        for name in ("learning-curves", "learning-rates", "time-to-target"):
            (folder / f"{name}.png").write_text(f"{plan} {runs}")

    if request.param == "scores":
        monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
        monkeypatch.setattr("jaxcnn.study.plots.write_plots", write)


def per_example(learning_rate: float) -> optax.GradientTransformation:
    """An optimizer of a user's that cannot work."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        raise ValueError("a step has one gradient for all")

    return optax.GradientTransformation(lambda params: learning_rate, update)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ("--optimizers sgd sdg", "got 'sdg' (did you mean sgd?)"),
        ("--network imagenet", "--network takes mnist, cifar10 or module:Class"),
        ("--network-args features=3", "--network-args takes the arguments of a --network"),
        ("--network tests.linear:Nothing", "tests.linear:Nothing"),
        ("--network tests.linear:Linear --network-args depth=3", "change --network-args"),
        ("--optimizers dpsgd", "cannot be dpsgd: it needs a gradient for every image"),
        ("--optimizers sgd sgd", "each name once"),
        ("--optimizers my_module:thing", "cannot import my_module"),
        ("--optimizers sgd tests.cli.test_study:per_example", "a step has one gradient for all"),
        ("--learning-rates fast", "--learning-rates takes numbers above 0"),
        ("--seeds 0", "--seeds takes a whole number from 1 to 10000, got 0"),
        ("--seeds 10001", "--seeds takes a whole number from 1 to 10000, got 10001"),
        ("--tune-seeds 0", "--tune-seeds takes a whole number from 1 to 10000, got 0"),
        ("--optimizers", "--optimizers takes at least one name"),
        ("--batch-size -1", "--batch-size takes"),
        ("--target -0.1", "--target takes a number from 0 to 1"),
        ("--devices 1 --mesh data=1", "--devices takes a number of devices"),
        ("--target 2", "--target takes a number from 0 to 1"),
        ("--epochs 0", "--epochs takes a whole number from 1"),
        ("--join nowhere", "nowhere holds no study (study.json is missing): join the workdirs"),
        ("--join tests docs", "tests holds no study (study.json is missing): join the workdirs"),
        ("--join ~nosuchuser/a", "'~nosuchuser/a' is not a valid path"),
        ("--join a b --seeds 3 --data real", "from the studies: leave out --seeds, --data"),
    ],
)
def test_a_mistake_is_one_sentence(
    argv: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*argv.split(), "--workdir", str(tmp_path / "run")])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert named in line
    assert not (tmp_path / "run").exists()


def test_a_value_of_another_type_gets_tyro_s_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--recipe", "imagenet"])
    assert caught.value.code == 2
    assert "invalid choice 'imagenet' for argument '--recipe'" in capsys.readouterr().err


@pytest.mark.usefixtures("_chunks")
def test_a_study(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = dataclasses.replace(tiny_mnist, version="[tiny]")  # rich could take it for markup
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **options: named)
    argv = "--optimizers sgd adamw --learning-rates 0.01:0.02:log2 --seeds 2 --tune-seeds 1"
    argv += f" --epochs 1 --batch-size 30 --validation 60 --workdir {tmp_path / 'run'}"
    main([*argv.split(), "--no-compilation-cache"])
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:4] == [
        "tune sgd: 2 runs (0% of the study done)",
        "tune adamw: 2 runs (22% of the study done)",
        "final sgd: 2 runs (45% of the study done)",
        "final adamw: 2 runs (72% of the study done)",
    ]
    assert lines[-1] == f"results: {tmp_path / 'run'}"
    assert "| steps to 98.0% validation accuracy |" in out
    (about,) = [
        line for line in lines if line.startswith("mnist [tiny], 1 epochs at batch 30, on ")
    ]
    assert about.endswith(environment.machine())
    assert "| optimizer | test accuracy, mean ± standard error (2 seeds) |" in out
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {
        "study.json",
        "runs.jsonl",
        "curves.csv",
        "table.md",
        "learning-curves.png",
        "learning-rates.png",
        "time-to-target.png",
    }
    assert (tmp_path / "run" / "table.md").read_text() in out
    main([*argv.split(), "--no-compilation-cache"])
    out, _ = capsys.readouterr()
    assert "8 runs have ended already" in out
    assert "of the study done" not in out  # nothing was left to do


@pytest.mark.usefixtures("_chunks")
def test_joined_studies(
    tmp_path: Path,
    tiny_mnist: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their files are those of one study of all optimizers, byte for byte."""
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", lambda name, **options: tiny_mnist)
    monkeypatch.chdir(tmp_path)
    flags = "--learning-rates 0.01 --seeds 2 --tune-seeds 1 --epochs 1 --batch-size 30"
    flags += " --validation 60 --no-compilation-cache"

    def study(argv: str) -> str:
        main(argv.split())
        return capsys.readouterr().out

    study(f"--optimizers sgd adamw lion {flags} --workdir whole")
    study(f"--optimizers sgd {flags} --workdir a")
    study(f"--optimizers adamw lion {flags} --workdir b")
    with pytest.raises(SystemExit):
        main(["--join", "a", "b"])
    assert "--join takes --workdir too" in capsys.readouterr().err
    out = study("--join a b --workdir all")
    assert (tmp_path / "all" / "table.md").read_text() in out
    plots = [f"{name}.png" for name in ("learning-curves", "learning-rates", "time-to-target")]
    for name in ("runs.jsonl", "curves.csv", "table.md", *plots):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    specification = load_specification(tmp_path / "all")
    assert specification.pop("command").endswith(" --join a b --workdir all")
    whole = load_specification(tmp_path / "whole")
    assert specification == {name: value for name, value in whole.items() if name != "command"}
    # The joined study is one like any other.
    out = study(f"--optimizers sgd adamw lion {flags} --workdir all")
    assert "9 runs have ended already" in out
    assert "of the study done" not in out
    study(f"--optimizers muon {flags} --seeds 3 --workdir c")
    with pytest.raises(SystemExit) as caught:
        main("--join a b c --workdir other".split())
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "c and the studies before it differ in seeds: join studies that differ in" in line
    assert not (tmp_path / "other").exists()


def test_what_flags_mean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_mnist: Dataset
) -> None:
    """They come to the study as they are; without them, as the recipe and network have it."""
    asked: list[tuple[Any, ...]] = []

    def run(plan: Study, dataset: Dataset, folder: Path, **options: Any) -> list[Run]:
        asked.append((plan, dataset.name, folder, options))
        return []

    caches: list[bool] = []
    monkeypatch.setattr("jaxcnn.study.study.run_study", run)
    monkeypatch.setattr("jaxcnn.cli.study._write", lambda *args: None)
    monkeypatch.setattr(
        "jaxcnn.data.dataset.load_data",
        lambda name, **options: dataclasses.replace(tiny_mnist, name=name),
    )
    monkeypatch.setattr("jaxcnn.storage.compilation.enable_cache", lambda say: caches.append(True))
    monkeypatch.chdir(tmp_path)
    run_study_flags(parse_study_flags([]), "the command")
    argv = "--network cifar10 --target 0.5 --seeds 1 --tune-seeds 10000 --validation 7 --chunk 3"
    argv += " --mesh ensemble=1 --optimizers lion sgd --workdir w --learning-rates 0.1"
    run_study_flags(parse_study_flags([*argv.split(), "--no-compilation-cache"]))
    (plan, dataset, folder, options), (plan2, dataset2, folder2, options2) = asked
    assert caches == [True]
    recipe = named.recipe("mnist", "fast").replace(epochs=5)
    rates = {name: recipe.replace(optimizer=name).learning_rate for name in plan.learning_rates}
    assert list(rates) == ["sgd", "adamw", "muon", "lion"]
    assert {name: tried[2] for name, tried in plan.learning_rates.items()} == pytest.approx(rates)
    assert dataclasses.replace(plan, learning_rates={}) == Study(recipe, {}, 2, 8, 5000, 0.98)
    assert (dataset, folder) == ("mnist", Path("runs/study-mnist"))
    assert (options["chunk"], options["mesh"]) == (None, None)
    assert options["command"] == "the command"
    recipe = named.recipe("cifar10", "fast").replace(epochs=5)
    tried = {"lion": (0.1,), "sgd": (0.1,)}
    assert plan2 == Study(recipe, tried, 10_000, 1, 7, 0.5)
    assert (dataset2, folder2, options2["chunk"]) == ("cifar10", Path("w"), 3)
    assert dict(options2["mesh"].shape) == {"ensemble": 1, "data": 1}
    assert parse_study_flags(["--target", "1"]).target == 1
    run_study_flags(parse_study_flags(["--data", "kmnist", "--no-compilation-cache"]))
    plan, dataset, *_ = asked[-1]
    assert (dataset, (plan.recipe.mean, plan.recipe.std)) == ("kmnist", tiny_mnist.moments())


@pytest.mark.parametrize("script", ["optimizers.py", "my_optimizer.py"])
def test_help(script: str) -> None:
    command = [sys.executable, str(REPOSITORY / "experiments" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--learning-rates" in done.stdout


def test_the_example_is_short() -> None:
    assert len((REPOSITORY / "experiments" / "my_optimizer.py").read_text().splitlines()) < 40
