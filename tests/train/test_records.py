import dataclasses
import json
import os
import resource
from pathlib import Path

import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError, WriteError
from jaxcnn.recipes import named
from jaxcnn.train import records
from jaxcnn.train.result import EpochRecord, Result

RECORD = EpochRecord(
    epoch=1,
    step=600,
    learning_rate=0.01,
    train_loss=0.5,
    train_accuracy=0.75,
    test_loss=0.25,
    test_accuracy=0.875,
    seconds=2.0,
    images_per_second=30_000.0,
)
RESULT = Result(
    state=None,  # type: ignore[arg-type]
    history=(RECORD,),
    test_correct=9876,
    test_total=10_000,
    parameters=207_258,
    train_seconds=2.0,
    eval_seconds=1.0,
    compile_seconds=3.0,
    images_per_second=30_000.0,
)


def events(folder: Path) -> list[Event]:
    """Reads an event file, records of length, checksum, data, checksum."""
    (path,) = folder.glob("events.out.tfevents.*")
    content, found, position = path.read_bytes(), [], 0
    while position < len(content):
        length = int.from_bytes(content[position : position + 8], "little")
        found.append(Event.FromString(content[position + 12 : position + 12 + length]))
        position += 16 + length
    return found


def scalars(folder: Path) -> dict[str, tuple[int, float]]:
    """Reads the last scalar of each name, and its step."""
    return {
        value.tag: (event.step, value.simple_value)
        for event in events(folder)
        for value in event.summary.value
    }


def test_metrics_and_events(tmp_path: Path) -> None:
    workdir = tmp_path / "new" / "run"
    files = records.Records(workdir)
    files.start(epochs=2, images=60_000)
    files.epoch(RECORD)
    assert json.loads((workdir / "metrics.jsonl").read_text()) == RECORD.asdict()  # at once
    assert scalars(workdir)["test_accuracy"] == (600, 0.875)
    files.epoch(dataclasses.replace(RECORD, epoch=2, step=1200, learning_rate=None))
    files.stop()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    seen = scalars(workdir)
    assert seen.keys() == RECORD.asdict().keys() - {"epoch", "step"}
    assert seen["test_accuracy"] == (1200, 0.875)
    assert seen["learning_rate"] == (600, pytest.approx(0.01))


def test_a_resumed_run_has_every_epoch_once(tmp_path: Path) -> None:
    files = records.Records(tmp_path)
    files.start(epochs=3, images=60_000)
    for epoch in (1, 2):
        files.epoch(dataclasses.replace(RECORD, epoch=epoch, step=600 * epoch))
    # Killed here: not even closed. The second epoch had been logged, but not saved.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    files.stop()
    for path in tmp_path.glob("events*"):
        path.unlink()
    again = records.Records(tmp_path)
    again.start(epochs=3, images=60_000, history=[RECORD], step=600)
    for epoch in (2, 3):
        again.epoch(dataclasses.replace(RECORD, epoch=epoch, step=600 * epoch))
    again.stop()
    # TensorBoard drops what a stopped run had shown from this step on.
    (restart,) = (event for event in events(tmp_path) if event.HasField("session_log"))
    assert (restart.session_log.status, restart.step) == (SessionLog.START, 601)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


ROWS = [{"step": step, "loss": step / 4, "learning_rate": None} for step in range(1, 7)]


def test_logged_steps_and_events(tmp_path: Path) -> None:
    files = records.Records(tmp_path)
    files.start(epochs=1, images=1)
    assert not (tmp_path / "steps.jsonl").exists()  # a run without a log has none
    files.log(ROWS[:4])
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS[:4]  # at once
    files.epoch(dataclasses.replace(RECORD, metrics={"own": 0.5, "nothing": None}))
    files.stop()
    seen = scalars(tmp_path)
    assert seen["step/loss"] == (4, 1.0)
    assert seen["own"] == (600, 0.5)
    assert not {"step/learning_rate", "step/step", "nothing"} & set(seen)


@pytest.mark.parametrize("rest", ["", '{"step": 5, "lo', "null\n", '{"step": "x"}\n'])
def test_a_resumed_run_has_every_step_once(tmp_path: Path, rest: str) -> None:
    files = records.Records(tmp_path)
    files.start(epochs=1, images=1)
    files.log(ROWS[:4])
    files.stop()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write(rest)
    for path in tmp_path.glob("events*"):
        path.unlink()
    again = records.Records(tmp_path)
    again.start(epochs=1, images=1, step=3)
    again.log(ROWS[3:])
    again.stop()
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    (restart,) = (event for event in events(tmp_path) if event.HasField("session_log"))
    assert (restart.session_log.status, restart.step) == (SessionLog.START, 4)


def test_what_is_no_number_is_no_json(tmp_path: Path, tiny_mnist: Dataset) -> None:
    files = records.Records(tmp_path)
    files.start(epochs=1, images=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.epoch(dataclasses.replace(RECORD, train_loss=float("nan")))
    files.stop()
    result = dataclasses.replace(RESULT, train_seconds=float("inf"))
    content = records.make_result(result, named.recipe("mnist", "fast"), tiny_mnist, {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write_result(tmp_path, content)
    assert not (tmp_path / "result.json").exists()


def test_stopping_closes_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[EventsWriter] = []
    close = EventsWriter.close

    def noted(writer: EventsWriter) -> None:
        closed.append(writer)
        close(writer)

    monkeypatch.setattr(EventsWriter, "close", noted)
    files = records.Records(tmp_path)
    files.start(epochs=1, images=1)
    assert not files._metrics.closed
    files.stop()
    assert files._metrics.closed
    assert closed == [files._events]


def test_a_full_disk_is_an_error_at_once(tmp_path: Path) -> None:
    files = records.Records(tmp_path)
    files.start(epochs=100, images=60_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(WriteError, match="size limit; give --workdir"):
            list(map(files.epoch, [RECORD] * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        files.stop()


def test_result(tmp_path: Path, tiny_mnist: Dataset) -> None:
    recipe = named.recipe("mnist", "fast")
    settings = {"seed": 3, "feed": "device"}
    records.write_result(tmp_path, records.make_result(RESULT, recipe, tiny_mnist, settings))
    text = (tmp_path / "result.json").read_text()
    assert text.startswith('{\n  "dataset": "mnist",\n')
    content = json.loads(text)
    expected = {
        "dataset": "mnist",
        "dataset_is_real": True,
        "recipe": "fast",
        "seed": 3,
        "test_accuracy": 0.9876,
        "test_correct": 9876,
        "test_total": 10_000,
        "parameters": 207_258,
        "train_seconds": 2.0,
        "compile_seconds": 3.0,
        "images_per_second": 30_000.0,
    }
    assert {key: content[key] for key in expected} == expected
    for field in dataclasses.fields(recipe):
        key = {"name": "recipe"}.get(field.name, field.name)
        assert content[key] == json.loads(json.dumps(getattr(recipe, field.name)))
    assert set(content["versions"]) >= {"python", "jax", "jaxlib", "flax", "optax", "jaxcnn"}
    assert content["device"].startswith("cpu (")
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    assert records.read_result(tmp_path) == content


def test_a_failed_result_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WriteError, match="the disk is full; give --workdir"):
        records.write_result(tmp_path, {"test_accuracy": 0.9})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"tta_test_accuracy": NaN}'])
def test_no_result(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    assert records.read_result(tmp_path) == {}


@pytest.mark.parametrize("ratio", ["1.4", "-0.1", "null", '"0.9"', "true", "1e999"])
def test_a_result_that_cannot_be(ratio: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(f'{{"tta_test_accuracy": {ratio}}}')
    with pytest.raises(UserError, match=r"result.json is not what the run wrote .*tta_test_acc"):
        records.read_result(tmp_path)


@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl"])
def test_a_workdir_that_holds_a_foreign_or_finished_run_is_refused(
    tmp_path: Path, name: str
) -> None:
    records.check_workdir(tmp_path)
    records.check_workdir(tmp_path / "new")
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"already holds a run .*{name}.*another folder"):
        records.check_workdir(tmp_path)


@pytest.mark.parametrize("content", [{"epochs": 4}, {"epochs": "2"}, {}])
def test_a_finished_run_is_gone_on_with_by_more_epochs_alone(
    tmp_path: Path, content: dict[str, object]
) -> None:
    said = "already holds a run that has ended .* or give more --epochs"
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "result.json").write_text(json.dumps(content))
    for epochs in (0, 3, 4):
        with pytest.raises(UserError, match=said):
            records.check_workdir(tmp_path, "auto", epochs)
    (tmp_path / "result.json").write_text(json.dumps({"epochs": 2}))
    records.check_workdir(tmp_path, "auto", 3)
    records.check_workdir(tmp_path, "must", 3)
    with pytest.raises(UserError, match=said):
        records.check_workdir(tmp_path, "never", 3)
    (tmp_path / "checkpoints").rmdir()
    with pytest.raises(UserError, match=said):
        records.check_workdir(tmp_path, "auto", 3)


def test_the_result_stands_until_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "result.json").touch()
    for epochs, left in ((1, True), (2, False)):
        files = records.Records(tmp_path)
        files.start(epochs=epochs, images=1, history=[RECORD], step=600)
        files.stop()
        assert (tmp_path / "result.json").exists() == left


def test_an_unfinished_run_is_gone_on_with_unless_forbidden(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run to go on with"):
        records.check_workdir(tmp_path, "must")
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / "checkpoints").mkdir()
    records.check_workdir(tmp_path)
    records.check_workdir(tmp_path, "must")
    with pytest.raises(UserError, match="already holds a run"):
        records.check_workdir(tmp_path, "never")


def test_a_file_is_no_workdir(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        records.check_workdir(tmp_path / "file")
    with pytest.raises(WriteError, match="give --workdir"):
        records.Records(tmp_path / "file" / "run").start(epochs=1, images=1)
