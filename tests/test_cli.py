import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn import catalog, cli, data, recipes
from jaxcnn.data import Dataset
from jaxcnn.errors import UserError

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


def test_defaults_are_the_recipe_s() -> None:
    for network, named in recipes.RECIPES.items():
        for name, recipe in named.items():
            flags, parsed = cli.parse(network, ["--recipe", name])
            assert parsed == recipe
            assert (flags.seed, flags.data, flags.feed) == (0, "auto", "auto")
    assert cli.parse("mnist", [])[1] == recipes.get("mnist", "fast")


def test_flags_change_the_recipe() -> None:
    argv = "--recipe=reference --epochs 3 --batch-size 32 --learning-rate 1e-2 --seed 7".split()
    flags, recipe = cli.parse("cifar10", argv)
    expected = recipes.get("cifar10", "reference").replace(
        epochs=3, batch_size=32, learning_rate=0.01
    )
    assert recipe == expected
    assert flags.seed == 7


def test_optimizer_flags() -> None:
    argv = "--optimizer adamw --optimizer-args b1=0.8 nesterov=True --schedule onecycle"
    argv += " --warmup 0.2 --weight-decay 0.1 --clip 2 --ema 0.9"
    _, recipe = cli.parse("mnist", argv.split())
    assert recipe.optimizer_args == {"b1": 0.8, "nesterov": True}
    assert (recipe.schedule, recipe.warmup, recipe.weight_decay) == ("onecycle", 0.2, 0.1)
    assert (recipe.clip, recipe.ema) == (2.0, 0.9)
    _, recipe = cli.parse("mnist", ["--optimizer", "dog"])
    assert recipe.optimizer_args == catalog.get("dog").args
    _, recipe = cli.parse("cifar10", ["--optimizer", "schedule_free_sgd"])
    assert (recipe.schedule, recipe.warmup) == ("constant", 0.0)


def test_an_optimizer_brings_its_learning_rate() -> None:
    _, recipe = cli.parse("mnist", ["--optimizer", "adamw"])
    assert recipe.learning_rate == catalog.get("adamw").learning_rate
    _, recipe = cli.parse("mnist", ["--optimizer=adamw", "--learning-rate=0.5"])
    assert recipe.learning_rate == 0.5


BAD = [
    (["--epochs", "abc"], "--epochs"),
    (["--epochs", "0"], "--epochs takes a whole number from 1"),
    (["--epochs"], "--epochs"),
    (["--epoch", "3"], "--epoch"),
    (["--batch-size", "-5"], "--batch-size"),
    (["--learning-rate", "nan"], "--learning-rate takes a finite number above 0, got nan"),
    (["--optimizer", "sdg"], "got 'sdg' (did you mean sgd?)"),
    (["--optimizer", "dpsgd"], "--optimizer cannot be dpsgd: it needs a gradient for every image"),
    (["--optimizer", "no_module:make"], "cannot import no_module"),
    (["--optimizer", "json:nothing"], "json has no function nothing"),
    (["--optimizer", "adam", "--optimizer-args", "b9=1"], "adam has no such argument"),
    (["--optimizer-args", "b1"], "--optimizer-args takes key=value pairs, got 'b1'"),
    (["--schedule", "zigzag"], "'zigzag'"),
    (["--clip", "-1"], "--clip takes a finite number, 0 or more"),
    (["--ema", "1"], "--ema takes a number from 0 to below 1"),
    (["--optimizer", "schedule_free_sgd", "--schedule", "cosine"], "give --schedule constant"),
    (["--recipe", "slow"], "'slow'"),
    (["--seed", "-1"], "--seed takes a whole number from 0"),
    (["--data", "cifar10"], "'cifar10'"),
    (["--feed", "pigeon"], "'pigeon'"),
    (["stray"], "stray"),
]


@pytest.mark.parametrize(("argv", "named"), BAD)
def test_a_mistake_is_one_sentence(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main("mnist", argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert named in line
    assert ": error: " in line


@given(
    st.lists(st.sampled_from(["--epochs", "--seed", "--recipe", "--data"]) | st.text(max_size=8))
)
def test_any_arguments_are_parsed_or_refused(argv: list[str]) -> None:
    try:
        cli.parse("mnist", argv)
    except UserError as error:
        assert "\n" not in str(error)
    except SystemExit as stop:
        assert stop.code in (0, None)  # --help or -h


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom jaxcnn.cli import main\n"
        "try:\n    main('mnist', ['--help'])\n"
        "except SystemExit:\n    sys.exit(any(m in sys.modules for m in ('jax', 'numpy', 'flax')))"
    )
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - began)
    for flag in (
        "--recipe --epochs --batch-size --optimizer --learning-rate --seed --data --data-dir "
        "--archive-dir --workdir --feed"
    ).split():
        assert flag in done.stdout
    # jax alone takes longer to import than all of this.
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import jax, flax"], check=True)
    assert min(times) < time.perf_counter() - began


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tiny_mnist: Dataset) -> list[dict]:
    """Puts a tiny data set in the place of any other and keeps what was asked for."""
    asked: list[dict] = []

    def load(name: str, **options: object) -> Dataset:
        asked.append({"name": name, **options})
        if options["source"] != "synthetic":
            return tiny_mnist
        fields = dict(vars(tiny_mnist)) | {"name": "synthetic-mnist", "notice": "of a reason"}
        return Dataset(**fields)

    monkeypatch.setattr(data, "load", load)
    return asked


def test_a_run(tmp_path: Path, tiny: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    workdir = tmp_path / "run"
    argv = ["--epochs", "2", "--data", "mnist", "--workdir", str(workdir), "--seed", "5"]
    cli.main(
        "mnist",
        [
            *argv,
            "--no-compilation-cache",
            "--report",
            "never",
            "--archive-dir",
            "/a",
            "--data-dir",
            "/d",
            "--tta",
        ],
    )
    assert tiny[0]["source"] == "real"
    assert (tiny[0]["archive_dir"], tiny[0]["data_dir"]) == ("/a", "/d")
    out, _ = capsys.readouterr()
    result = json.loads((workdir / "result.json").read_text())
    assert (result["seed"], result["epochs"], result["dataset"]) == (5, 2, "mnist")
    assert f"{result['test_correct']} right of 70 total" in out
    assert f"with test-time augmentation: {result['tta_test_correct']} right of 70" in out
    assert "NOT THE REAL DATA" not in out
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
    assert list(workdir.glob("events.out.tfevents.*"))
    with pytest.raises(SystemExit):
        cli.main("mnist", argv)  # the same workdir again
    assert json.loads((workdir / "result.json").read_text()) == result


def test_a_stand_in_is_announced_loudly(
    tmp_path: Path, tiny: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--epochs", "1", "--data", "synthetic", "--no-compilation-cache", "--report", "never"]
    cli.main("mnist", [*argv, "--workdir", str(tmp_path / "run")])
    lines = capsys.readouterr().out.splitlines()
    assert "NOT THE REAL DATA" in lines[0]
    assert "of a reason" in lines[0]
    accuracy = next(index for index, line in enumerate(lines) if "right of" in line)
    assert "synthetic-mnist" in lines[accuracy]
    assert "stand-in" in lines[accuracy + 1]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["dataset"], result["dataset_is_real"]) == ("synthetic-mnist", False)


def test_a_diverged_run_ends_with_status_1(
    tmp_path: Path, tiny: list[dict], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e30",
        "--no-compilation-cache",
        "--report",
        "never",
    ]
    with pytest.raises(SystemExit) as caught:
        cli.main("mnist", [*argv, "--workdir", str(tmp_path / "run")])
    assert caught.value.code == 1
    assert "smaller value" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    with pytest.raises(SystemExit) as caught:
        cli.main("mnist", [])
    assert caught.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1
