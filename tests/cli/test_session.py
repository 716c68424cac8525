"""What an experiment does, from its flags to the files that it leaves."""

import errno
import itertools
import json
import re
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import jaxcnn
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices.mesh import describe_mesh
from jaxcnn.errors import StoppedError, UserError
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import NetworkName
from jaxcnn.report import page
from jaxcnn.storage import atomic, checkpoint
from jaxcnn.train import evaluate as train_evaluate
from jaxcnn.train import records
from jaxcnn.train.result import Result
from tests.conformance import SmallCNN
from tests.runs import ARGV, QUICK, Ended, Run, load_tiny, outcome, raising, start, stop_at

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tiny_mnist: Dataset) -> list[dict[str, Any]]:
    """The arguments of each call of `load_data`, which returns a tiny data set."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", load_tiny(tiny_mnist, found))
    return found


@pytest.fixture
def small(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train a small network on a tiny data set."""
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: SmallCNN())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Run:
    """A run of a small network from beginning to end."""
    calls: dict[str, list[Any]] = {"load": [], "evaluate": [], "write": []}
    found = Run(tmp_path_factory.mktemp("cli") / "run [bold]", Ended(None, "", ""), calls)
    fit, evaluate = jaxcnn.fit, train_evaluate.evaluate

    def fitted(*args: Any, **options: Any) -> Result:
        found.fitted.append(fit(*args, **options))
        return found.fitted[0]

    def evaluated(*args: Any, **options: Any) -> tuple[int, int, float]:
        calls["evaluate"].append(options)
        return evaluate(*args, **options)

    def written(*args: Any) -> str:
        calls["write"].append(args)
        return "page.html"

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("jaxcnn.data.dataset.load_data", load_tiny(tiny_mnist, calls["load"]))
        monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: SmallCNN())
        monkeypatch.setattr("jaxcnn.fit", fitted)
        monkeypatch.setattr("jaxcnn.train.evaluate.evaluate", evaluated)
        monkeypatch.setattr(
            "jaxcnn.train.trained.load_trained", lambda workdir: f"network of {workdir}"
        )
        monkeypatch.setattr("jaxcnn.report.page.write_report", written)
        monkeypatch.setattr(sys, "argv", ["mnist.py", "some words"])
        ended = start(*ARGV, found.workdir, "--archive-dir", "/a", "--data-dir", "/d")
    return replace(found, ended=ended)


def check_run(run: Run, dataset: Dataset) -> None:
    """Looks through what a run on the real data leaves."""
    assert run.ended.status == 0
    assert run.ended.err == ""
    result, out = run.result, run.ended.out
    assert (result["seed"], result["epochs"], result["dataset"]) == (5, 2, dataset.name)
    assert result["dataset_is_real"]
    correct, total = result["test_correct"], len(dataset.test)
    assert result["test_total"] == total
    ratio = f"{correct / total:.2%}"
    assert f"{dataset.name}: {correct} correct of {total} total, accuracy {ratio}" in out
    correct = result["tta_test_correct"]
    assert result["tta_test_accuracy"] == correct / total
    assert f"with test-time augmentation: {correct} correct of {total} total" in out
    assert "NOT THE REAL DATA" not in out
    assert "is synthetic" not in out
    assert len((run.workdir / "metrics.jsonl").read_text().splitlines()) == 2
    assert list(run.workdir.glob("events.out.tfevents.*"))
    assert checkpoint.list_checkpoints(run.workdir / "checkpoints")


def test_a_run(run: Run, tiny_mnist: Dataset) -> None:
    check_run(run, tiny_mnist)
    (asked,) = run.calls["load"]
    assert (asked["name"], asked["source"]) == ("mnist", "real")
    assert (asked["archive_dir"], asked["data_dir"]) == ("/a", "/d")
    lines = run.ended.out.splitlines()
    assert lines[0] == "data: mnist tiny, 330 training and 70 test images"
    assert lines[1].startswith("recipe: reference, 2 epochs at batch 110 with sgd 0.01, seed 5, on")
    assert [line[:9] for line in lines[2:4]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[4].startswith("trained in ")
    assert lines[-1] == f"results: {run.workdir}"
    result = run.result
    assert result["feed"] == "device"
    assert "mesh" not in result
    (options,) = run.calls["evaluate"]
    assert (options["tta"], type(options["model"])) == (True, SmallCNN)
    assert result["command"].endswith(" mnist.py 'some words'")
    saved = [found.step for found in checkpoint.list_checkpoints(run.workdir / "checkpoints")]
    assert saved[-1] == 6
    assert len(saved) <= 2  # the latest and the best


def test_a_run_leaves_a_report(run: Run) -> None:
    ((network, dataset, folder, result),) = run.calls["write"]
    assert json.loads(json.dumps(result)) == run.result
    assert network == f"network of {run.workdir}"
    assert (dataset.version, folder) == ("tiny", run.workdir)
    assert "report: page.html" in run.ended.out.splitlines()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("resume", ["auto", "must", "never"])
def test_a_run_that_has_ended_is_left_alone(run: Run, resume: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")}
    ended = start(*ARGV, run.workdir, "--resume", resume)
    assert ended.status == 2
    assert "already holds a run that has ended" in ended.err
    assert {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")} == before


@pytest.mark.usefixtures("small")
def test_signals_save_and_the_same_command_resumes(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "run"
    argv = [*ARGV, folder, "--report", "never"]
    # From step 2 on the chunks end at steps 3, 4 and 6.
    for name, status, chunk, step in (("SIGTERM", 143, 1, 2), ("SIGINT", 130, 2, 4)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            stop_at(monkeypatch, signal.Signals[name], chunk)
            stopped = start(*argv)
        assert stopped.status == status
        saved = checkpoint.list_checkpoints(folder / "checkpoints")[-1]
        saved.verify()
        assert saved.step == step
        assert stopped.err == (
            f"stopped at step {step} of 6, saved in {saved.folder}; the same flags with --workdir "
            f"{folder} resume it\n"
        )
        assert not (folder / "result.json").exists()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    for changed, said in (
        (("--seed", "1"), "seed 5 there and 1 here"),
        (("--resume", "never"), "already holds a run"),
    ):
        refused = start(*argv, *changed)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert said in refused.err
    # The bits do not depend on the feed either.
    ended = start(*argv, "--resume", "must", "--feed", "stream")
    assert ended.status == 0
    assert f"resuming from {saved.folder}" in ended.out
    assert outcome(folder) == outcome(run.workdir)
    assert json.loads((folder / "result.json").read_text())["feed"] == "stream"


@pytest.mark.usefixtures("small")
def test_frozen_parameters(tmp_path: Path) -> None:
    argv = [*ARGV, tmp_path / "run", *QUICK, "--epochs", "1"]
    ended = start(*argv, "--freeze", "*/Conv_0/*", "*_0/scale")
    assert (ended.status, ended.err) == (0, "")
    assert "frozen: 3 of 6 arrays, 44 of 2,018 parameters" in ended.out.splitlines()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["freeze"] == ["*/Conv_0/*", "*_0/scale"]
    for freeze, said in (("conv1/*", "matches no parameter"), ("*", "no parameter to train")):
        refused = start(*ARGV, tmp_path / "other", "--freeze", freeze)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert said in refused.err
        assert not (tmp_path / "other" / "metrics.jsonl").exists()


@pytest.mark.usefixtures("small")
def test_more_epochs_go_on_with_a_run(tmp_path: Path, run: Run) -> None:
    """With a constant schedule the files are those of the whole run."""
    argv = [*ARGV, tmp_path / "run", "--report", "never", "--log-every", "2"]
    assert start(*argv, "--epochs", "1").status == 0
    ended = start(*argv)
    assert (ended.status, ended.err) == (0, "")
    assert "going on to 2 epochs instead of 1: from step 3 on" in ended.out
    assert outcome(tmp_path / "run") == outcome(run.workdir)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["epochs"], result["epochs_trained"]) == (2, 2)
    rows = (tmp_path / "run" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 6]
    # Killed on the way, it has no result until its new end; all else that differs is refused.
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_at(monkeypatch, signal.SIGTERM, 1)
        assert start(*argv, "--epochs", "3").status == 143
    assert not (tmp_path / "run" / "result.json").exists()
    for changed, said in (
        (("--epochs", "2"), "epochs 3 there and 2 here"),
        (("--epochs", "4", "--seed", "1"), "another run (seed 5 there and 1 here)"),
    ):
        refused = start(*argv, *changed)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert said in refused.err
    assert start(*argv, "--epochs", "3").status == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.usefixtures("small")
def test_must_resume_wants_a_run(tmp_path: Path) -> None:
    ended = start(*ARGV, tmp_path / "run", "--resume", "must")
    assert ended.status == 2
    assert "holds no run to go on with" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("small")
def test_one_process_has_a_workdir(tmp_path: Path) -> None:
    with atomic.locked(tmp_path / "run" / "checkpoints"):
        ended = start(*ARGV, tmp_path / "run")
    assert ended.status == 2
    assert "in use by another process" in ended.err


@pytest.fixture
def fitted(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was given to `fit` by name; it returns at once what it did before."""
    given: list[dict[str, Any]] = []

    def fit(*_: object, **options: Any) -> Result:
        given.append(options)
        options["checkpoints"].folder.mkdir(parents=True)
        return run.fitted[0]

    monkeypatch.setattr("jaxcnn.fit", fit)
    return given


@pytest.mark.usefixtures("fitted")
def test_synthetic_data_is_warned_of(
    tmp_path: Path, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept: list[None] = []
    monkeypatch.setattr("jaxcnn.storage.compilation.enable_cache", lambda say: kept.append(None))
    argv = "--recipe reference --batch-size 110 --epochs 1 --data synthetic --report never".split()
    ended = start(*argv)
    assert ended.status == 0
    assert asked[0]["source"] == "synthetic"
    assert (asked[0]["archive_dir"], asked[0]["data_dir"]) == (None, None)
    assert kept == [None]
    lines = ended.out.splitlines()
    assert "NOT THE REAL DATA" in lines[0]
    assert "of a reason" in lines[0]
    accuracy = next(index for index, line in enumerate(lines) if "correct of" in line)
    assert "synthetic-mnist" in lines[accuracy]
    assert (
        lines[accuracy + 1] == "*** synthetic-mnist is synthetic: this says nothing about mnist ***"
    )
    assert "report: " not in ended.out
    assert "test-time augmentation" not in ended.out
    assert re.fullmatch(r"results: runs/mnist-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}", lines[-1])
    folder = tmp_path / lines[-1].removeprefix("results: ")
    result = json.loads((folder / "result.json").read_text())
    assert (result["dataset"], result["dataset_is_real"]) == ("synthetic-mnist", False)
    assert "tta_test_correct" not in result


@pytest.mark.usefixtures("small")
def test_a_diverged_run_ends_with_status_1(tmp_path: Path) -> None:
    # The later of two values counts.
    ended = start(*ARGV, tmp_path / "run", "--learning-rate", "1e30")
    assert ended.status == 1
    assert "smaller value" in ended.err
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.usefixtures("small")
def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, by a limit, once the first epoch has been saved."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    advance = records.Records.advance
    chunks = itertools.count(1)

    def fill(*args: Any, **options: Any) -> None:
        if next(chunks) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # bytes, of any file
        advance(*args, **options)

    monkeypatch.setattr(records.Records, "advance", fill)
    argv = [*ARGV, tmp_path / "run", "--checkpoint-every", "1", "--keep", "9"]
    try:
        ended = start(*argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert "cannot write" in ended.err
    assert "size limit; give --workdir" in ended.err
    assert not (tmp_path / "run" / "result.json").exists()
    (saved,) = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.verify()["step"] == 3
    assert not list((tmp_path / "run" / "checkpoints").glob(".*.staging"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("module", "name"), [(page, "write_report"), (records, "write_result")])
def test_where_the_last_files_fail_the_same_command_completes_the_run(
    module: Any, name: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.trained.load_trained", lambda workdir: None)
    monkeypatch.setattr("jaxcnn.report.page.write_report", lambda *_: "page.html")
    argv = [*ARGV, tmp_path / "run"]
    with pytest.MonkeyPatch.context() as failing:
        failing.setattr(module, name, raising(OSError(errno.EDQUOT, "", str(tmp_path / "a file"))))
        ended = start(*argv)
    assert ended.status == 2
    assert ended.err.endswith(
        f"error: {tmp_path / 'a file'}: the disk quota is used up; give another path, or repair "
        "this one\n"
    )
    assert not (tmp_path / "run" / "result.json").exists()
    assert start(*argv).status == 0
    assert outcome(tmp_path / "run") == outcome(run.workdir)


@pytest.mark.usefixtures("asked", "fitted")
def test_a_run_whose_output_fails_is_completed_and_reports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "jaxcnn.cli.screen.output_failure", lambda: "standard output: the disk is full"
    )
    ended = start(*ARGV, tmp_path / "run", *QUICK)
    assert ended.status == 2
    assert ended.err.endswith(
        "error: standard output: the disk is full; everything else was done\n"
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["screen"] == "standard output: the disk is full"


def test_missing_archives_are_one_sentence(tmp_path: Path) -> None:
    argv = ["--data", "mnist", "--archive-dir", tmp_path / "no", "--workdir", tmp_path / "run"]
    ended = start(*argv, "--no-compilation-cache")
    assert ended.status == 2
    assert ended.err.count("\n") == 1
    assert "--archive-dir" in ended.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_a_run_of_the_real_network(
    network: NetworkName,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the recipe fast."""
    dataset = request.getfixturevalue(f"tiny_{network}")
    monkeypatch.setattr("jaxcnn.data.dataset.load_data", load_tiny(dataset, []))
    # The recipe's batch is larger than the tiny data set of CIFAR-10.
    size = min(named.recipe(network, "fast").batch_size, len(dataset.train))
    argv: list[object] = ["--epochs", 2, "--batch-size", size, "--data", network, "--seed", 5]
    argv += ["--no-compilation-cache", "--report", "never", "--tta", "--workdir", tmp_path / "run"]
    ended = start(*argv, network=network)
    check_run(Run(tmp_path / "run", ended), dataset)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("main", [True, False])
def test_another_process_received_the_signal(
    main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.fit", raising(StoppedError("stopped")))
    monkeypatch.setattr("jaxcnn.devices.processes.is_main", lambda: main)
    ended = start(*ARGV, tmp_path / "run")
    assert ended.status == 143
    assert ended.err.startswith("stopped; the same flags with --workdir") == main
    assert ended.err.count("\n") == main
    assert bool(ended.out) == main  # only one of the processes speaks


@pytest.mark.usefixtures("asked")
def test_a_mesh(
    tmp_path: Path, fitted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[dict[str, Any]] = []
    monkeypatch.setattr("jaxcnn.devices.processes.check_same", compared.append)
    argv = [*ARGV, tmp_path / "run", "--mesh", "data=1", *QUICK]
    ended = start(*argv)
    assert fitted[0]["mesh"].shape["data"] == 1
    described = describe_mesh(fitted[0]["mesh"])
    assert ended.out.splitlines()[1].endswith(f", {described}")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["mesh"] == described
    # Where there are several processes, these have to agree.
    flags = {"seed": 5, "mesh": described, "feed": "auto", "dataset": "mnist"}
    flags |= {"checkpoint_every": "2steps", "epochs": 2, "learning_rate": 0.01}
    assert {name: compared[0][name] for name in flags} == flags


@pytest.mark.usefixtures("asked")
def test_what_fit_is_given(tmp_path: Path, fitted: list[dict[str, Any]]) -> None:
    start(*ARGV, tmp_path / "run", "--feed", "stream", "--keep", 3, *QUICK)
    given = fitted[0]
    assert (given["seed"], given["feed"], given["mesh"]) == (5, "stream", None)
    policy = given["checkpoints"]
    assert (policy.folder, policy.keep) == (tmp_path / "run" / "checkpoints", 3)
    assert (policy.every, policy.resume) == (checkpoint.Every(2, "steps"), "auto")


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("sizes", [(), ("--devices", 1), ("--mesh", "data=1")])
def test_several_processes(
    sizes: Sequence[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.devices.processes.count", lambda: 2)
    monkeypatch.setattr("jaxcnn.devices.processes.leave", lambda status: None)  # ends the process
    joined: list[tuple[Any, ...]] = []

    def join(*args: Any) -> None:
        joined.append(args)

    monkeypatch.setattr("jaxcnn.devices.processes.join", join)
    meshes: list[dict[str, int]] = []

    def mesh(axes: dict[str, int]) -> None:
        meshes.append(axes)
        raise UserError("seen")

    monkeypatch.setattr("jaxcnn.devices.mesh.make_mesh", mesh)
    argv = [*ARGV[:-1], "--processes", 2, "--coordinator", "here:1", "--process-id", 1, *sizes]
    assert "several processes have one workdir" in start(*argv).err
    assert "seen" in start(*argv, "--workdir", tmp_path / "run").err
    assert joined == [("2", "here:1", 1)] * 2
    assert meshes == [{"data": 1}]  # all devices, unless a number is given


def test_user_defined_optimizers_are_found_where_the_command_runs(
    tmp_path: Path, fitted: list[dict[str, Any]], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults._trusted", set())
    argv = [*ARGV, "run", *QUICK, "--optimizer"]
    missing = start(*argv, "optimizer_of_test_cli:make")
    assert missing.status == 2
    assert "cannot import optimizer_of_test_cli" in missing.err
    assert asked == []  # before the data is loaded, which takes longer
    (tmp_path / "optimizer_of_test_cli.py").write_text("from optax import sgd as make\n")
    assert start(*argv, "optimizer_of_test_cli:make").status == 0
    assert len(fitted) == len(asked) == 1
    # A recipe file alone is not enough.
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults._trusted", set())
    del sys.modules["optimizer_of_test_cli"]
    (tmp_path / "mine.toml").write_text("optimizer = 'optimizer_of_test_cli:make'\n")
    by_file = [*argv[:-1], "--recipe", "mine.toml", "--workdir", "other"]
    untold = start(*by_file)
    assert untold.status == 2
    assert "give --optimizer optimizer_of_test_cli:make as well" in untold.err
    assert "optimizer_of_test_cli" not in sys.modules
    assert start(*by_file, "--optimizer", "optimizer_of_test_cli:make").status == 0
    assert len(fitted) == 2
    del sys.modules["optimizer_of_test_cli"]


def test_a_user_defined_loss_is_found_where_the_command_runs(
    tmp_path: Path, fitted: list[dict[str, Any]], asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [*ARGV, "run", *QUICK, "--log-every", 2, "--loss", "loss_of_test_cli:half"]
    missing = start(*argv)
    assert missing.status == 2
    assert "--loss loss_of_test_cli:half: cannot import loss_of_test_cli" in missing.err
    assert asked == []  # before the data is loaded, which takes longer
    code = tmp_path / "loss_of_test_cli.py"
    code.write_text("def half(logits, labels):\n    return logits[:, 0] / 2\n")
    ended = start(*argv)
    assert ended.status == 0
    assert f"loss: loss_of_test_cli:half of {code}" in ended.out.splitlines()
    (options,) = fitted
    assert options["loss"] is sys.modules.pop("loss_of_test_cli").half
    assert options["log_every"] == 2
    assert json.loads((tmp_path / "run" / "result.json").read_text())["loss"] == argv[-1]
