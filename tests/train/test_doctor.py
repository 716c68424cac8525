import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import pytest

from jaxcnn.cli import tools
from jaxcnn.devices import environment
from jaxcnn.errors import DataError
from jaxcnn.networks.cpu import library
from jaxcnn.train import doctor, steps
from tests.conftest import REPOSITORY


class Network(nn.Module):
    """Quick to compile; as it trains, it may differ from what it should be."""

    dtype: Any = None
    staged: bool = True
    wrong: float = 0.0

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images[:, ::4, ::4].reshape(images.shape[0], -1)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)
        return nn.Dense(10, dtype=self.dtype)(x * (1 + self.wrong * self.staged))


def examined(monkeypatch: pytest.MonkeyPatch, wrong: float = 0.0) -> list[doctor.Finding]:
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda recipe: Network(wrong=wrong))
    monkeypatch.setattr("jaxcnn.train.doctor._CALLS", 3)
    return list(doctor._steps("mnist"))


def test_a_step_that_computes_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    step, repeated = examined(monkeypatch)
    assert (step.what, repeated.what) == ("training step, MNIST", "repeated step, MNIST")
    assert step.sound
    assert repeated == doctor.Finding(repeated.what, True, "3 calls gave the same bits")


def test_a_step_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    step, repeated = examined(monkeypatch, wrong=0.05)
    assert not step.sound
    assert "take another jax" in step.seen
    assert repeated.sound


def test_accelerators_may_round_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert examined(monkeypatch, wrong=0.05)[0].sound
    assert not examined(monkeypatch, wrong=0.5)[0].sound


def test_a_step_that_varies(monkeypatch: pytest.MonkeyPatch) -> None:
    make, calls = steps.make_train_step, []

    def varying(*args: Any, **options: Any) -> Any:
        step = make(*args, **options)

        def vary(state: Any, batch: Any) -> Any:
            calls.append(None)
            state, metrics = step(state, batch)
            last = 1e-7 * (len(calls) == 4)  # the third time that the step is repeated
            return state.replace(params=jax.tree.map(lambda x: x + last, state.params)), metrics

        return vary

    monkeypatch.setattr("jaxcnn.train.steps.make_train_step", varying)
    step, repeated = examined(monkeypatch)
    assert step.sound
    assert not repeated.sound
    assert repeated.seen.startswith("1 of 3 calls gave other bits")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = jax.local_devices()
    assert doctor._device(first) == doctor.Finding("cpu 0", True, "multiplies matrices right")
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda array, device: put(array, device).at[0].add(1))
    assert not doctor._device(first).sound


@pytest.mark.parametrize("right", [True, False])
def test_a_defect_of_jax(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.train.doctor.reduces_right", lambda: right)
    assert doctor._reduction().sound == right
    said: list[tuple[str, ...]] = []
    doctor.warn(["sgd"], lambda *line: said.append(line))
    assert said == []
    doctor.warn(["sgd", "mine:make"], lambda *line: said.append(line))
    assert len(said) == (not right)
    if not right:
        assert "a known defect of jax" in said[0][0]


def test_the_defect_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this jax has it or not."""
    assert doctor.reduces_right() or jax.__version_info__ < (0, 11)
    monkeypatch.setattr(jax, "jit", lambda function: lambda rows: function(rows) * 0.99)
    assert not doctor.reduces_right()


def test_the_cache_of_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.storage.compilation.folder", lambda: tmp_path / "new" / "folder")
    found = doctor._programs()
    assert found.sound
    assert found.seen == f"0 for this processor, 0 MiB in {tmp_path / 'new' / 'folder'}"
    (tmp_path / "file").touch()
    monkeypatch.setattr("jaxcnn.storage.compilation.folder", lambda: tmp_path / "file" / "folder")
    found = doctor._programs()
    assert not found.sound
    assert found.seen.endswith(
        "a part of the path is a file: set JAXCNN_CACHE_DIR to a folder that "
        "can be written and has room"
    )


def test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def locate(name: str, data_dir: str) -> Any:
        asked.append(data_dir)
        if data_dir == "damaged":
            raise DataError("is damaged: remove it")
        return SimpleNamespace(folder="there") if data_dir == "full" else None

    monkeypatch.setattr("jaxcnn.data.tfds.find_prepared", locate)
    what = "data, mnist"
    assert doctor._data("mnist", "full", "") == doctor.Finding(what, True, "prepared in there")
    damaged = doctor.Finding(what, False, "is damaged: remove it")
    assert doctor._data("mnist", "damaged", "") == damaged
    assert doctor._data("mnist", "", "").seen.endswith("the first start does that, from a download")
    monkeypatch.setenv("JAXCNN_ARCHIVE_DIR", "mine")
    assert doctor._data("mnist", "", "").seen.endswith(", from the archives in mine")
    assert doctor._data("mnist", "", "other").seen.endswith(", from the archives in other")


FINDINGS = [doctor.Finding("one", True, "fine"), doctor.Finding("other", False, "bad: mend it")]


@pytest.mark.parametrize("findings", [FINDINGS[:1], FINDINGS])
def test_the_command(
    findings: list[doctor.Finding],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it prints, and what the reports of runs on this machine say afterwards."""
    monkeypatch.setattr("jaxcnn.train.doctor.examine", lambda *_: iter(findings))
    assert doctor.outcome() == "not examined, see jaxcnn doctor"
    sound = len(findings) == 1
    if sound:
        tools.main(["doctor"])
    else:
        with pytest.raises(SystemExit) as ended:
            tools.main(["doctor"])
        assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[0] == environment.machine()
    assert out.splitlines()[1] == "sound     one: fine"
    assert out.splitlines()[2:] == (
        ["all 1 are sound"] if sound else ["NOT SOUND other: bad: mend it", "1 of 2 are not sound"]
    )
    assert doctor.outcome() == ("sound" if sound else "not sound: other")
    with monkeypatch.context() as patch:
        patch.setattr(
            "jaxcnn.devices.environment.machine", lambda: "another one, or with another jax"
        )
        assert doctor.outcome() == "not examined, see jaxcnn doctor"


@pytest.mark.parametrize("content", ["", "[]", '{"machine": 5, "unsound": []}'])
def test_an_outcome_that_is_none(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path))
    (tmp_path / "doctor.json").write_text(content)
    assert doctor.outcome() == "not examined, see jaxcnn doctor"


@pytest.mark.slow
def test_this_machine_is_sound() -> None:
    """But for what is known of its jax."""
    assert library.in_use()  # compiled, which is said otherwise
    ended = subprocess.run(
        [sys.executable, "-m", "jaxcnn", "doctor"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    for what in (
        "cpu 0",
        "training step, MNIST",
        "training step, CIFAR-10",
        "repeated step, MNIST",
    ):
        assert any(line.startswith(f"sound     {what}: ") for line in lines), ended.stdout
    unsound = [line for line in lines if line.startswith("NOT SOUND")]
    assert ended.returncode == bool(unsound)
    assert all("a known defect of jax" in line for line in unsound), ended.stdout
    assert len(lines) >= 12
