"""One of several processes of a run or a study, and what starts all of them.

python -m tests.several PORT COUNT K FOLDER [study|arena|meet] [stop|kill|hang VICTIM]
"""

import dataclasses
import itertools
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.arena.description import Protocol
from jaxcnn.arena.entry import run_entry
from jaxcnn.arena.spaces import find_space
from jaxcnn.arena.track import find_track
from jaxcnn.cli.console import ending_on_errors
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import processes
from jaxcnn.devices.keys import unwrap_key
from jaxcnn.devices.mesh import make_mesh
from jaxcnn.storage import checkpoint
from jaxcnn.study.specification import Study
from jaxcnn.study.study import StudyObserver, run_study
from jaxcnn.train import feed, setup
from jaxcnn.train.fit import fit
from tests.conformance import RECIPE, SHAPE, SmallCNN, dataset
from tests.conftest import REPOSITORY
from tests.stripes import striped_split

# 28 of 318 divide over four devices, the 10 pictures that are left do not. Not Adam: it makes whole
# steps of the rounding errors that are the gradient of a bias before BatchNorm.
RECIPE_HERE = RECIPE.replace(optimizer="sgd", epochs=3, batch_size=28)
SAVED = checkpoint.Every(5, "steps")
# Ends what hangs, in seconds; no process is late because the machine is busy.
PATIENCE = 900


def start(folder: Path, count: int, devices: int, *action: str) -> list[subprocess.Popen[str]]:
    """Starts the processes of a run."""
    simulated = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": simulated, "PYTHONPATH": str(REPOSITORY)}
    with socket.socket() as held:
        # The processes inherit the socket, so no other program gets the port while one of them
        # lives; process 0 can listen there all the same, since jax's server shares it.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("", 0))
        port = held.getsockname()[1]
        return [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.several",
                    *map(str, (port, count, process, folder, *action)),
                ],
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=[held.fileno()],
            )
            for process in range(count)
        ]


def end(running: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Returns the status and the last words of each."""
    try:
        said = [process.communicate(timeout=PATIENCE)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def train(folder: Path, interrupted: Callable[[], bool]) -> None:
    """Trains, and writes the parameters and losses at the end."""
    feed._CHUNK_BYTES, feed._CHUNK_STEPS = 1, 3
    train, test = striped_split(SHAPE, 318, 0), striped_split(SHAPE, 64, 1)
    data = Dataset("mnist", "stripes", train, test, tuple("0123456789"))
    result = fit(
        RECIPE_HERE,
        data,
        model=SmallCNN(),
        mesh=make_mesh({"data": jax.device_count()}),
        checkpoints=checkpoint.Policy(folder / "checkpoints", SAVED, keep=100),
        interrupted=interrupted,
    )
    if processes.is_main():
        leaves = jax.tree.leaves((result.state.params, result.state.batch_stats))
        losses = [(record.train_loss, record.test_loss) for record in result.history]
        numbers = [np.asarray(unwrap_key(leaf)).ravel() for leaf in leaves]
        np.savez(folder / "end.npz", numbers=np.concatenate(numbers), losses=losses)


def compare(folder: Path, interrupted: Callable[[], bool]) -> None:
    """Does a study, of three runs and then three, which do not divide over two devices."""
    rates = {"sgd": (0.02, 0.05, 1e30)}
    plan = Study(RECIPE.replace(epochs=2), rates, tune_seeds=1, seeds=3, validation=40)

    class Observer(StudyObserver):
        def advance(self, images: int) -> None:
            interrupted()

    mesh = make_mesh({"ensemble": jax.device_count()})
    setup.make_model = lambda *_: SmallCNN()  # type: ignore[assignment]
    run_study(plan, dataset(), folder, mesh=mesh, observer=Observer())


def enter(folder: Path, interrupted: Callable[[], bool]) -> None:
    """Computes an entry of the arena, whose trials do not divide over two devices."""
    track = find_track("mnist-sprint")
    track = dataclasses.replace(track, recipe=track.recipe.replace(epochs=20, batch_size=32))
    space = find_space(track.for_optimizer("sgd"))

    class Observer(StudyObserver):
        def advance(self, images: int) -> None:
            interrupted()

    mesh = make_mesh({"ensemble": jax.device_count()})
    setup.make_model = lambda *_: SmallCNN()  # type: ignore[assignment]
    numbers = Protocol(trials=5, seeds=3, validation=40)
    how: dict[str, Any] = {"protocol": numbers, "mesh": mesh, "observer": Observer()}
    run_entry(track, "sgd", space, dataset(), folder / track.title, **how)


def main(port: str, count: str, process: str, folder: str, *action: str) -> None:
    """Joins the others and does what all do; the victim stops, dies or hangs on the way."""
    call = {"study": compare, "arena": enter}.get(action[0] if action else "", train)
    if "meet" in action:
        from tests import meeting

        call = lambda folder, _: meeting.meet(folder)  # noqa: E731
    asked, numbers = itertools.count(), {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}

    def interrupted() -> bool:
        if action[-1:] == (process,) and next(asked) == 4:
            if "stop" in action:
                return True
            os.kill(os.getpid(), numbers[action[-2]])
        return False

    address = f"127.0.0.1:{port}" if count != "1" else ""
    processes.join(count, address, int(process) if address else -1)
    with processes.noticing_losses():
        call(Path(folder), interrupted)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", message=".*is deprecated")
    with ending_on_errors("several"):
        main(*sys.argv[1:])
