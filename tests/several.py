"""One of several processes of a run, for `tests/test_processes.py`.

python -m tests.several PORT COUNT K FOLDER [stop|kill|hang VICTIM]
"""

import itertools
import os
import signal
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

from jaxcnn import checkpoint, cli, parallel, processes, training, trees
from jaxcnn.data import Dataset, feed
from tests.conformance import RECIPE, SHAPE, SmallCNN
from tests.stripes import striped_split

# 28 of 318 divide over four devices, the 10 pictures that are left do not. Not Adam: it makes whole
# steps of the rounding errors that are the gradient of a bias before BatchNorm.
RECIPE_HERE = RECIPE.replace(optimizer="sgd", epochs=3, batch_size=28)
SAVED = checkpoint.Every(5, "steps")


def main(port: str, count: str, process: str, folder: Path, action: str, victim: str) -> None:
    """Trains, and writes the parameters and losses at the end."""
    asked = itertools.count()

    def interrupted() -> bool:
        if victim == process and next(asked) == 4:
            if action == "stop":
                return True
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "hang": signal.SIGSTOP}[action])
        return False

    feed._CHUNK_BYTES, feed._CHUNK_STEPS = 1, 3
    processes._HEARTBEAT = 5
    processes.join(count, f"127.0.0.1:{port}" if count != "1" else "", int(process))
    train, test = striped_split(SHAPE, 318, 0), striped_split(SHAPE, 64, 1)
    data = Dataset("mnist", "stripes", train, test, tuple("0123456789"))
    with processes.noticing_losses():
        result = training.fit(
            RECIPE_HERE,
            data,
            model=SmallCNN(),
            mesh=parallel.make_mesh({"data": jax.device_count()}),
            checkpoints=checkpoint.Policy(folder / "checkpoints", SAVED, keep=100),
            interrupted=interrupted,
        )
    if processes.is_main():
        leaves = jax.tree.leaves((result.state.params, result.state.batch_stats))
        losses = [(record.train_loss, record.test_loss) for record in result.history]
        numbers = [np.asarray(trees.as_numbers(leaf)).ravel() for leaf in leaves]
        np.savez(folder / "end.npz", numbers=np.concatenate(numbers), losses=losses)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", message=".*is deprecated")
    port, count, process, folder, action, victim = (*sys.argv[1:], "", "")[:6]
    with cli.ending_on_errors("several"):
        main(port, count, process if count != "1" else "-1", Path(folder), action, victim)
