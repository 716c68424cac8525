import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import mnist
from jaxcnn.cli.devices import DeviceFlags
from jaxcnn.cli.flags import CheckpointFlags, DataFlags, parse_flags
from jaxcnn.errors import UserError
from jaxcnn.networks.cpu import library
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.named import RECIPES
from jaxcnn.storage import checkpoint
from tests.conftest import REPOSITORY


def test_defaults_are_the_recipe_s() -> None:
    for network, recipes in RECIPES.items():
        for name, recipe in recipes.items():
            flags, parsed = parse_flags(network, ["--recipe", name])
            assert parsed == recipe
            assert flags.recipe.name == name
            assert (flags.seed, flags.source, flags.feed) == (0, "auto", "auto")
            assert (flags.loss, flags.log_every) == ("", 0)
    flags, parsed = parse_flags("mnist", [])
    assert parsed == named.recipe("mnist", "fast")
    assert (flags.recipe.name, flags.tta, flags.report) == ("fast", False, "auto")
    assert (flags.recipe.epochs, flags.recipe.optimizer) == (parsed.epochs, parsed.optimizer)
    assert flags.data == DataFlags(data_dir="", archive_dir="")
    assert flags.checkpoints == CheckpointFlags(workdir="", every="1", keep=2, resume="auto")
    assert flags.devices == DeviceFlags(
        count=0, mesh="", processes="1", coordinator="", process_id=-1, compilation_cache=True
    )


def test_flags_have_their_names() -> None:
    argv = "--data synthetic --data-dir d --archive-dir a --workdir w --checkpoint-every 5steps"
    argv += " --keep 3 --resume must --devices 4 --mesh data=2 --processes auto"
    argv += " --coordinator host:1 --process-id 7 --no-compilation-cache --feed stream --tta"
    argv += " --loss mine:focal --log-every 10 --freeze params/conv* */bias"
    flags, _ = parse_flags("cifar10", [*argv.split(), "--report", "never"])
    assert (flags.loss, flags.log_every) == ("mine:focal", 10)
    assert flags.freeze == ("params/conv*", "*/bias")
    assert (flags.source, flags.feed, flags.tta, flags.report) == (
        "synthetic",
        "stream",
        True,
        "never",
    )
    assert flags.data == DataFlags("d", "a")
    assert flags.checkpoints == CheckpointFlags("w", "5steps", 3, "must")
    assert flags.devices == DeviceFlags(4, "data=2", "auto", "host:1", 7, compilation_cache=False)


def test_flags_change_the_recipe() -> None:
    argv = "--recipe=reference --epochs 3 --batch-size 32 --learning-rate 1e-2 --seed 7".split()
    flags, recipe = parse_flags("cifar10", argv)
    expected = named.recipe("cifar10", "reference").replace(
        epochs=3, batch_size=32, learning_rate=0.01
    )
    assert recipe == expected
    assert flags.seed == 7


def test_the_limits_of_what_is_allowed() -> None:
    for keep, seed in ((1, 0), (10**6, 2**32 - 1)):
        flags, _ = parse_flags("mnist", ["--keep", str(keep), "--seed", str(seed)])
        assert (flags.checkpoints.keep, flags.seed) == (keep, seed)


def test_optimizer_flags() -> None:
    argv = "--optimizer adamw --optimizer-args b1=0.8 nesterov=True --schedule onecycle"
    argv += " --warmup 0.2 --weight-decay 0.1 --clip 2 --ema 0.9"
    _, recipe = parse_flags("mnist", argv.split())
    assert recipe.optimizer_args == {"b1": 0.8, "nesterov": True}
    assert (recipe.schedule, recipe.warmup, recipe.weight_decay) == ("onecycle", 0.2, 0.1)
    assert (recipe.clip, recipe.ema) == (2.0, 0.9)
    _, recipe = parse_flags("mnist", ["--optimizer", "dog"])
    assert recipe.optimizer_args == optimizer_defaults.get("dog").args
    _, recipe = parse_flags("cifar10", ["--optimizer", "schedule_free_sgd"])
    assert (recipe.schedule, recipe.warmup) == ("constant", 0.0)


def test_an_optimizer_brings_its_learning_rate() -> None:
    _, recipe = parse_flags("mnist", ["--optimizer", "adamw"])
    assert recipe.learning_rate == optimizer_defaults.get("adamw").learning_rate
    _, recipe = parse_flags("mnist", ["--optimizer=adamw", "--learning-rate=0.5"])
    assert recipe.learning_rate == 0.5
    _, recipe = parse_flags("mnist", ["--optimizer", "sgd", "--optimizer", "adamw"])
    assert recipe.learning_rate == optimizer_defaults.get("adamw").learning_rate


def test_a_recipe_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "reference"\nepochs = 3\n')
    flags, recipe = parse_flags("mnist", ["--recipe", str(path), "--batch-size=8"])
    expected = named.recipe("mnist", "reference").replace(name="mine", epochs=3, batch_size=8)
    assert recipe == expected
    assert flags.recipe.name == str(path)


def test_only_the_command_line_makes_an_optimizer_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults._trusted", set())
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "mine.toml"
    path.write_text("optimizer = 'mine:make'\n")
    _, recipe = parse_flags("mnist", ["--recipe", str(path), "--coordinator", "here:make"])
    assert recipe.optimizer == "mine:make"
    assert not optimizer_defaults.is_trusted("mine:make")
    assert not optimizer_defaults.is_trusted("here:make")
    parse_flags("mnist", ["--recipe", str(path), "--optimizer=mine:make"])
    assert optimizer_defaults.is_trusted("mine:make")


OUT_OF_RANGE = [
    (["--epochs", "0"], "--epochs takes a whole number from 1"),
    (["--batch-size", "-5"], "--batch-size"),
    (["--learning-rate", "nan"], "--learning-rate takes a finite number above 0, got nan"),
    (["--optimizer", "sdg"], "got 'sdg' (did you mean sgd?)"),
    (["--optimizer", ""], "--optimizer takes the name"),
    (["--optimizer", "dpsgd"], "--optimizer cannot be dpsgd: it needs a gradient for every image"),
    (["--optimizer", "no_module:make"], "cannot import no_module"),
    (["--optimizer", "json:nothing"], "json has no function nothing"),
    (["--optimizer", "adam", "--optimizer-args", "b9=1"], "adam has no such argument"),
    (["--optimizer-args", "b1"], "--optimizer-args takes key=value pairs, got 'b1'"),
    (["--clip", "-1"], "--clip takes a finite number, 0 or more"),
    (["--ema", "1"], "--ema takes a number from 0 to below 1"),
    (["--optimizer", "schedule_free_sgd", "--schedule", "cosine"], "give --schedule constant"),
    (
        ["--recipe", "slow"],
        "--recipe: recipe takes reference, fast, best or sprint, got 'slow', or a .toml",
    ),
    (["--recipe", "no.toml"], "--recipe: no.toml cannot be read"),
    (["--seed", "-1"], "--seed takes a whole number from 0"),
    (["--seed", "4294967296"], "--seed takes a whole number from 0 to 4294967295"),
    (["--loss", "mine"], "--loss takes module:function, got 'mine'"),
    (["--loss", "no_module:focal"], "--loss no_module:focal: cannot import no_module"),
    (["--loss", "json:nothing"], "json has no function nothing; give one that returns the losses"),
    (["--log-every", "-1"], "--log-every takes a whole number from 0"),
    (["--keep", "0"], "--keep takes a whole number from 1 to 1000000, got 0"),
    (["--keep", "1000001"], "--keep takes a whole number from 1 to 1000000"),
    (["--checkpoint-every", "often"], "--checkpoint-every takes a number of epochs"),
    (["--mesh", "ensemble=2"], "one run has no ensemble"),
    (["--processes", "0"], "--processes takes a number from 1, or auto, got '0'"),
]


@pytest.mark.parametrize(("argv", "named"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_one_sentence(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        mnist.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert named in line
    assert ": error: " in line


# Tyro's message names the flag, and the value where there is one.
MALFORMED = [
    (["--epochs", "abc"], ("--epochs", "'abc'", "--help")),
    (["--epochs"], ("--epochs", "Missing value")),
    (["--epoch", "3"], ("--epoch, 3", "--epochs INT")),
    (["--schedule", "zigzag"], ("--schedule", "'zigzag'", "'constant'")),
    (["--recipe"], ("--recipe", "Missing value")),
    (["--feed", "pigeon"], ("--feed", "'pigeon'", "'device'")),
    (["stray"], ("stray",)),
]


@pytest.mark.parametrize(("argv", "named"), MALFORMED)
def test_a_malformed_command_line_gets_tyro_s_message(
    argv: list[str], named: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        mnist.main(argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    for part in named:
        assert part in err
    assert "Traceback" not in err


def test_the_arguments_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "7"])
    assert parse_flags("mnist")[1].epochs == 7
    assert parse_flags("mnist", ["--epochs", "8"])[1].epochs == 8
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "none"])
    with pytest.raises(SystemExit):
        parse_flags("mnist")


@given(
    st.lists(st.sampled_from(["--epochs", "--seed", "--recipe", "--data"]) | st.text(max_size=8))
)
def test_any_arguments_are_parsed_or_refused(argv: list[str]) -> None:
    try:
        parse_flags("mnist", argv)
    except UserError as error:
        assert "\n" not in str(error)
    except SystemExit as stop:
        assert stop.code in (0, None, 2)  # --help or -h, or tyro's message


def test_a_workdir_is_given_or_new(tmp_path: Path) -> None:
    assert CheckpointFlags(workdir=str(tmp_path)).folder("mnist") == tmp_path
    first, second = (CheckpointFlags().folder("mnist") for _ in range(2))
    assert first.parent == Path("runs")
    assert first.name.startswith("mnist-")
    assert first != second


def test_how_a_run_is_saved(tmp_path: Path) -> None:
    def echo(line: str) -> None:
        pass

    policy = CheckpointFlags(every="2steps", keep=3, resume="must").policy(tmp_path, echo)
    every = checkpoint.Every(2, "steps")
    assert policy == checkpoint.Policy(tmp_path, every, 3, "must", report=echo)


def start_help() -> str:
    """Returns what --help prints, and at the end the names of all imported modules."""
    code = (
        "import sys\nfrom experiments.mnist import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    print(*sys.modules)\n    sys.exit(stop.code)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout


def test_help_imports_nothing_heavy() -> None:
    *lines, modules = start_help().splitlines()
    for flag in (
        "--recipe --epochs --batch-size --optimizer --learning-rate --seed --data --data-dir "
        "--archive-dir --workdir --feed"
    ).split():
        assert any(flag in line for line in lines)
    heavy = "jax jaxlib numpy flax optax scipy tensorflow_datasets rich.console matplotlib".split()
    assert not set(heavy) & set(modules.split())


def test_help_shows_the_defaults_of_the_recipe_and_optimizer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_flags("mnist", ["--optimizer", "lion", "--recipe=reference", "--help"])
    assert not caught.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "a run that has ended goes on. (default: 20)" in text
    assert "(default: reference)" in text
    assert "(default: lion)" in text
    assert "Per step, at its peak. (default: 0.0002)" in text


@pytest.mark.slow
def test_help_is_quick() -> None:
    """Importing jax and flax takes longer than all of --help."""

    def seconds(call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    imports = [sys.executable, "-c", "import jax, flax"]
    pairs = [
        (seconds(start_help), seconds(lambda: subprocess.run(imports, check=True)))
        for _ in range(3)
    ]
    assert min(ours for ours, _ in pairs) < min(theirs for _, theirs in pairs)


def test_the_user_chooses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernels in ("native", "xla"):
        DeviceFlags(kernels=kernels).join(("data",), "")
        assert os.environ[library.VARIABLE] == kernels
    monkeypatch.setenv(library.VARIABLE, "native")
    monkeypatch.setattr(library, "_load", lambda: "there is no compiler")
    with pytest.raises(UserError, match="not available: there is no compiler"):
        DeviceFlags().join(("data",), "")
    monkeypatch.setenv(library.VARIABLE, "fast")
    with pytest.raises(UserError, match=library.VARIABLE):
        DeviceFlags().join(("data",), "")
