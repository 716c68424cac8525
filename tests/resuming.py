"""Runs of many optimizers, each in two processes.

python -m tests.resuming FOLDER stop      # stops every run in the middle of an epoch
python -m tests.resuming FOLDER           # goes on with them, or begins them, to the end
"""

import itertools
import json
import sys
import warnings
from pathlib import Path

import jax

from jaxcnn import checkpoint, training
from jaxcnn.data import feed
from jaxcnn.errors import StoppedError
from tests import conformance

# One of each kind of state: an average, moments, orthogonal ones, parameters of its own to be
# evaluated at, slow ones, adversarial ones, curvature, noise. `tests.conformance` has them all.
OPTIMIZERS = "sgd adamw muon schedule_free_adamw lookahead sam lbfgs noisy_sgd".split()


def run(folder: Path, stop: bool) -> None:
    """Runs them all; their checkpoints are in folders of their names."""
    feed._CHUNK_BYTES, feed._CHUNK_STEPS = 1, 3  # an epoch has ten steps
    data = conformance.dataset()
    for name in OPTIMIZERS:
        recipe = conformance.RECIPE.replace(optimizer=name, epochs=2, ema=0.9 * (name == "sgd"))
        asked = itertools.count()
        try:
            training.fit(
                recipe,
                data,
                model=conformance.SmallCNN(),
                checkpoints=checkpoint.Policy(folder / name, checkpoint.Every(0)),
                interrupted=lambda asked=asked: stop and next(asked) > 1,
            )
        except StoppedError as error:
            sys.stdout.write(f"{error}\n")


def outcomes(folder: Path) -> dict[str, object]:
    """Returns step, digests and losses of the last checkpoint of each."""
    found: dict[str, object] = {}
    for name in OPTIMIZERS:
        content = checkpoint.listed(folder / name)[-1].verify()
        records = content["progress"]["history"]
        losses = [(record["train_loss"], record["test_loss"]) for record in records]
        found[name] = json.dumps([content["step"], content["leaves"], losses])
    return found


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", message=".*is deprecated")
    run(Path(sys.argv[1]), stop="stop" in sys.argv[2:])
