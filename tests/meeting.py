"""What two processes make of each other, without training, for `tests/test_processes.py`."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.devices import processes
from jaxcnn.devices.mesh import Placement, describe_mesh, make_mesh
from jaxcnn.errors import UserError
from jaxcnn.storage import checkpoint
from jaxcnn.storage.shared import open_shared
from jaxcnn.study.specification import Study
from jaxcnn.study.study import run_study
from jaxcnn.train import ensemble
from jaxcnn.train.members import grid
from tests import scores
from tests.conformance import RECIPE, dataset

STUDY = Study(RECIPE.replace(epochs=2), {"sgd": (0.02, 0.05), "adam": (0.1,)}, 2, 3, validation=40)


class LockedError(Exception):
    """An error that cannot be sent to another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.call = lambda: None


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def said(call: Callable[[], Any]) -> str:
    """Returns what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def turns(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields by name what came of each meeting; the processes come to all of them together."""
    number = jax.process_index()
    yield "count", (processes.count(), processes.is_main())
    yield "from_main", processes.from_main(lambda: [number, "said"])
    yield "from_main error", said(lambda: processes.from_main(failing(ValueError(number))))
    locked = failing(LockedError(f"at {number}"))
    yield "from_main locked error", said(lambda: processes.from_main(locked))
    prepared = folder / "prepared"

    def prepare() -> tuple[int, bool]:
        """Process 1 finds what process 0 has prepared."""
        there = prepared.exists()
        prepared.touch()
        return number, there

    yield "main_first", processes.main_first(prepare)
    wrong = failing(UserError(f"wrong at {number}"))
    for process in (0, 1):
        call = wrong if number == process else lambda: None
        yield f"main_first error {process}", said(lambda call=call: processes.main_first(call))
    yield "exchange", processes.exchange({"number": number})
    yield "same", said(lambda: processes.check_same({"seed": 3, "chunk": None}))
    yield "other", said(lambda: processes.check_same({"seed": 3, "chunk": number}))
    asked: list[int] = []
    agreed = processes.Agreed(lambda: bool(asked.append(1)) or number == 1)
    yield "agreed", ([agreed() for _ in range(4)], len(asked))
    yield "checkpoints", checkpoints(folder)
    yield "arrays", arrays(number)
    yield "ensemble", said(lambda: list(ensemble.fit_chunks(*members(), keep_states=True)))
    ensemble.fit_chunks = scores.chunks  # type: ignore[assignment]
    runs = run_study(STUDY, dataset(), folder / "study")
    yield "study", [run.correct for run in runs]
    other = Study(STUDY.recipe, STUDY.learning_rates, 2, 3 + number, validation=40)
    yield "other study", said(lambda: run_study(other, dataset(), folder / "study"))


def members() -> tuple[Any, ...]:
    return RECIPE, dataset(), grid([0])


def checkpoints(folder: Path) -> list[Any]:
    """Saves a tree, and restores it."""
    policy = checkpoint.Policy(folder / "checkpoints", checkpoint.Every(1))
    tree = {"key": jax.random.key(7), "numbers": jnp.arange(3.0)}
    like = {"key": jax.random.key(0), "numbers": jnp.zeros(3)}
    runs = [lambda: {"run": 1}, failing(AssertionError("process 0 alone describes the run"))]
    with open_shared(policy, runs[jax.process_index()]) as store:
        nothing = store.resume(like)
        saved = store.save(4, tree, {"step": 4}, 0.5)
        restored, progress, path = store.resume(like) or failing(AssertionError())()
    key = jax.random.key_data(restored["key"]).tolist()
    return [nothing, saved == path, progress["step"], key, restored["numbers"].tolist()]


def arrays(number: int) -> list[Any]:
    """Puts arrays on the devices of both processes, one each, and looks at them."""
    data = Placement(make_mesh({"data": 2}))
    spread = Placement(make_mesh({"ensemble": 2}))
    numbers = np.arange(8.0, dtype=np.float32).reshape(1, 4, 2)
    rows = data.rows(4)
    sent = data.send({"image": numbers[:, rows]}, 4)["image"]
    parts = spread.spread({"numbers": np.arange(4)})
    return [
        (rows.start, rows.stop, data.rows(3).stop),
        (sent.shape, np.asarray(sent.addressable_data(0)).tolist()),
        data.send({"image": numbers[:, :3]}, 3)["image"].is_fully_replicated,
        data.fetch(data.replicate(np.arange(3))).tolist(),
        np.asarray(parts["numbers"].addressable_data(0)).tolist(),
        spread.spread(parts)["numbers"] is parts["numbers"],
        spread.collect(parts)["numbers"].tolist(),
        describe_mesh(data.mesh),
    ]


def meet(folder: Path) -> None:
    """Writes what came of all meetings."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    found = dict(turns(folder))
    found["pid"] = os.getpid()
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
