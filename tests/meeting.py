"""What two processes share with each other, without training; see `tests/devices/`."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.cli import interrupts
from jaxcnn.devices import processes
from jaxcnn.devices.keys import unwrap_key
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
    yield "sigterm", terminated()
    yield "on_main", processes.on_main(lambda word: [number, word, None])("said")
    wrong = failing(UserError(f"wrong at {number}"))
    yield "on_main error", said(processes.on_main(wrong))
    yield "on_main other error", said(processes.on_main(failing(ValueError(number))))
    prepared = folder / "prepared"

    def prepare() -> tuple[int, bool]:
        """Process 1 finds what process 0 has prepared."""
        there = prepared.exists()
        prepared.touch()
        return number, there

    yield "main_first", processes.main_first(prepare)()
    for process in (0, 1):
        call = wrong if number == process else lambda: None
        yield f"main_first error {process}", said(processes.main_first(call))
    yield "gather", processes.gather({"number": number, "text": "é" * number, "size": 2**40})
    yield "broadcast", broadcast(number)
    yield "same", said(lambda: processes.check_same({"seed": 3, "chunk": None}))
    yield "other", said(lambda: processes.check_same({"seed": 3, "chunk": number}))
    asked: list[int] = []
    poll = processes.any_process(lambda: bool(asked.append(1)) or number == 1)
    yield "any_process", ([poll() for _ in range(4)], len(asked))
    yield "checkpoints", checkpoints(folder)
    yield "arrays", arrays(number)
    yield "ensemble", said(lambda: list(ensemble.fit_chunks(*members(), keep_states=True)))
    ensemble.fit_chunks = scores.chunks  # type: ignore[assignment]
    runs = run_study(STUDY, dataset(), folder / "study")
    yield "study", [run.correct for run in runs]
    other = Study(STUDY.recipe, STUDY.learning_rates, 2, 3 + number, validation=40)
    yield "other study", said(lambda: run_study(other, dataset(), folder / "study"))


def terminated() -> str:
    """Returns what SIGTERM raises."""
    try:
        signal.raise_signal(signal.SIGTERM)
    except interrupts.Terminated as error:
        interrupts.raise_on_sigterm()
        return type(error).__name__
    return "nothing"


# By dtype, the bits of numbers that a sum with zero changes: -0.0, a signaling NaN, a subnormal.
DELICATE = {
    "float32": ("uint32", [0x80000000, 0x7FA00001, 1]),
    "bfloat16": ("uint16", [0x8000, 0x7F81, 1]),
}


def broadcast(number: int) -> dict[str, list[Any]]:
    """Broadcasts process 0's arrays; returns their dtype, shape and bits."""
    arrays = {
        name: np.array(bits, unsigned).view(name) for name, (unsigned, bits) in DELICATE.items()
    }
    tree = {
        **jax.tree.map(jnp.asarray, arrays),
        "bool": jnp.array([True, False]),
        "scalar": jnp.int32(-7),
        "empty": jnp.zeros((0, 2)),
        "key": jax.random.key(5),
    }
    if number == 1:  # which has other values
        tree = {name: jnp.zeros_like(leaf) for name, leaf in tree.items() if name != "key"}
        tree["key"] = jax.random.key(6)
    found = {}
    for name, leaf in processes.broadcast(tree).items():
        content = np.asarray(unwrap_key(leaf)).tobytes().hex()
        found[name] = [str(leaf.dtype), list(leaf.shape), content]
    return found


def members() -> tuple[Any, ...]:
    return RECIPE, dataset(), grid([0])


def checkpoints(folder: Path) -> list[Any]:
    """Saves a tree, and restores it."""
    policy = checkpoint.Policy(folder / "checkpoints", checkpoint.Every(1))
    tree = {"key": jax.random.key(7), "numbers": jnp.arange(3.0)}
    # Training begins with sums on all devices.
    zeros = Placement(make_mesh({"data": 2})).replicate(jnp.zeros(3))
    like = {"key": jax.random.key(0), "numbers": zeros}
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
    delicate = np.array([*DELICATE["float32"][1], 2], np.uint32).view(np.float32)
    parts = spread.shard_members({"numbers": np.arange(4), "floats": delicate})
    gathered = spread.gather_members(parts)
    return [
        (rows.start, rows.stop, data.rows(3).stop),
        (sent.shape, np.asarray(sent.addressable_data(0)).tolist()),
        data.send({"image": numbers[:, :3]}, 3)["image"].is_fully_replicated,
        data.fetch(data.replicate(np.arange(3))).tolist(),
        np.asarray(parts["numbers"].addressable_data(0)).tolist(),
        spread.shard_members(parts)["numbers"] is parts["numbers"],
        gathered["numbers"].tolist(),
        gathered["floats"].view(np.uint32).tolist(),
        describe_mesh(data.mesh),
    ]


def meet(folder: Path) -> None:
    """Writes what came of all meetings."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    found = dict(turns(folder))
    found["pid"] = os.getpid()
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))
