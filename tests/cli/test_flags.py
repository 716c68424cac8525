import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.cli.console import parse_pairs
from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.run import main
from jaxcnn.errors import UserError
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.named import RECIPES
from tests.runs import Ended, raising, start

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


def test_defaults_are_the_recipe_s() -> None:
    for network, recipes in RECIPES.items():
        for name, recipe in recipes.items():
            flags, parsed = parse_flags(network, ["--recipe", name])
            assert parsed == recipe
            assert (flags.seed, flags.data, flags.feed) == (0, "auto", "auto")
    flags, parsed = parse_flags("mnist", [])
    assert parsed == named.recipe("mnist", "fast")
    assert (flags.recipe, flags.tta, flags.report) == ("fast", False, "auto")
    assert (flags.checkpoint_every, flags.keep, flags.resume) == ("1", 2, "auto")
    assert (flags.devices, flags.processes, flags.process_id) == (0, "1", -1)
    assert flags.compilation_cache


def test_flags_change_the_recipe() -> None:
    argv = "--recipe=reference --epochs 3 --batch-size 32 --learning-rate 1e-2 --seed 7".split()
    flags, recipe = parse_flags("cifar10", argv)
    expected = named.recipe("cifar10", "reference").replace(
        epochs=3, batch_size=32, learning_rate=0.01
    )
    assert recipe == expected
    assert flags.seed == 7


def test_the_ends_of_what_is_taken() -> None:
    for keep, seed in ((1, 0), (10**6, 2**32 - 1)):
        flags, _ = parse_flags("mnist", ["--keep", str(keep), "--seed", str(seed)])
        assert (flags.keep, flags.seed) == (keep, seed)


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
    (["--recipe"], "--recipe"),
    (["--seed", "-1"], "--seed takes a whole number from 0"),
    (["--seed", "4294967296"], "--seed takes a whole number from 0 to 4294967295"),
    (["--keep", "0"], "--keep takes a whole number from 1 to 1000000, got 0"),
    (["--keep", "1000001"], "--keep takes a whole number from 1 to 1000000"),
    (["--data", "cifar10"], "'cifar10'"),
    (["--feed", "pigeon"], "'pigeon'"),
    (["stray"], "stray"),
]


@pytest.mark.parametrize(("argv", "named"), BAD)
def test_a_mistake_is_one_sentence(
    argv: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main("mnist", argv)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert named in line
    assert ": error: " in line


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    """Puts back what a command changes for the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def test_the_arguments_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "none"])
    with pytest.raises(SystemExit):
        main("mnist")
    seen: list[int] = []
    monkeypatch.setattr(
        "jaxcnn.cli.run.run_flags", lambda flags, recipe: seen.append(recipe.epochs)
    )
    monkeypatch.setattr(sys, "argv", ["mnist.py", "--epochs", "7"])
    main("mnist")
    main("mnist", ["--epochs", "8"])
    assert seen == [7, 8]


@given(
    st.lists(st.sampled_from(["--epochs", "--seed", "--recipe", "--data"]) | st.text(max_size=8))
)
def test_any_arguments_are_parsed_or_refused(argv: list[str]) -> None:
    try:
        parse_flags("mnist", argv)
    except UserError as error:
        assert "\n" not in str(error)
    except SystemExit as stop:
        assert stop.code in (0, None)  # --help or -h


def start_help() -> str:
    """Returns what --help prints, and at the end the names of all modules that it imported."""
    code = (
        "import sys\nfrom jaxcnn.cli.run import main\n"
        "try:\n    main('mnist', ['--help'])\n"
        "except SystemExit as stop:\n    print(*sys.modules)\n    sys.exit(stop.code)"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy() -> None:
    *lines, modules = start_help().splitlines()
    for flag in (
        "--recipe --epochs --batch-size --optimizer --learning-rate --seed --data --data-dir "
        "--archive-dir --workdir --feed"
    ).split():
        assert any(flag in line for line in lines)
    heavy = "jax jaxlib numpy flax optax scipy tensorflow_datasets rich.console matplotlib".split()
    assert not set(heavy) & set(modules.split())


@pytest.mark.slow
def test_help_is_quick() -> None:
    """To import jax and flax takes longer than all of --help."""

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


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (UserError("no disk: buy one"), 2, "no disk")],
)
def test_errors_end_with_their_status(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    monkeypatch.setattr("jaxcnn.devices.processes.leave", left.append)
    monkeypatch.setattr("jaxcnn.cli.run.run_flags", raising(error))
    monkeypatch.setattr(sys, "argv", ["/some/where/mnist.py"])
    ended = start()
    assert ended.status == status
    assert ended.err.startswith("mnist.py: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert left == [status]  # so that the other processes of a run end as well


def test_sigterm_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.001)

    left: list[int] = []
    monkeypatch.setattr("jaxcnn.devices.processes.leave", left.append)
    monkeypatch.setattr("jaxcnn.cli.run.run_flags", wait)
    monkeypatch.setattr(sys, "argv", [""])
    assert start() == Ended(143, "", "mnist: terminated\n")
    assert left == [143]


def test_pairs() -> None:
    found = parse_pairs("--x", ["a=1", "b=0.5", "c=text", "d=None", "e=f=g", "h="])
    assert found == {"a": 1, "b": 0.5, "c": "text", "d": None, "e": "f=g", "h": ""}
    for pair, said in (
        ("a", "--x takes key=value pairs, got 'a'"),
        ("1a=2", "--x takes key=value pairs, got '1a=2'"),
        ("a=1e999", "--x takes finite numbers, got 'a=1e999'"),
    ):
        with pytest.raises(UserError) as caught:
            parse_pairs("--x", [pair])
        assert str(caught.value) == said


def test_a_recipe_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "reference"\nepochs = 3\n')
    flags, recipe = parse_flags("mnist", ["--recipe", str(path), "--batch-size=8"])
    expected = named.recipe("mnist", "reference").replace(name="mine", epochs=3, batch_size=8)
    assert recipe == expected
    assert flags.recipe == str(path)
