"""Runs of many optimizers, and of an ensemble, each in two processes.

python -m tests.resuming FOLDER stop      # stops every run in the middle of an epoch
python -m tests.resuming FOLDER           # goes on with them, or begins them, to the end
"""

import itertools
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax

from jaxcnn.errors import StoppedError
from jaxcnn.storage import checkpoint
from jaxcnn.train import ensemble, ensemble_program, feed
from jaxcnn.train.feed import FeedName
from jaxcnn.train.fit import fit
from jaxcnn.train.members import grid
from tests import conformance

# One of each kind of state: an average, moments, orthogonal ones, parameters of its own to be
# evaluated at, slow ones, adversarial ones, curvature, noise. `tests.conformance` has them all.
OPTIMIZERS = "sgd adamw muon schedule_free_adamw lookahead sam lbfgs noisy_sgd".split()


ENSEMBLE = "ensemble/members-000000"


def short_pieces(set_: Callable[[Any, str, int], None] = setattr) -> None:
    """Cuts epochs, of ten steps here, into pieces after which a run may stop."""
    set_(feed, "_CHUNK_BYTES", 1)
    set_(feed, "_CHUNK_STEPS", 3)
    set_(ensemble_program, "_PIECE", 3)


def run(
    folder: Path,
    stop: bool,
    names: Sequence[str] = (*OPTIMIZERS, "ensemble"),
    model: nn.Module | None = None,
) -> None:
    """Runs them all, and an ensemble; their checkpoints are in folders of their names."""
    data, model = conformance.dataset(), model or conformance.SmallCNN()
    for name in names:
        asked = itertools.count()
        options: dict[str, Any] = {
            "model": model,
            "checkpoints": checkpoint.Policy(folder / name, checkpoint.Every(0)),
            "interrupted": lambda asked=asked: stop and next(asked) > 1,
        }
        try:
            if name == "ensemble":
                recipe = conformance.RECIPE.replace(epochs=2)
                members = grid([0, 1], learning_rate=[0.001, 0.01])
                ensemble.fit_many(recipe, data, members, chunk=4, **options)
            else:
                ema = 0.9 * (name == "sgd")
                recipe = conformance.RECIPE.replace(optimizer=name, epochs=2, ema=ema)
                streamed: FeedName = "stream" if name == "adamw" else "device"
                fit(recipe, data, feed=streamed, **options)
        except StoppedError as error:
            sys.stdout.write(f"{error}\n")


def outcomes(folder: Path) -> dict[str, object]:
    """Returns step, digests and losses of the last checkpoint of each that was run."""
    found: dict[str, object] = {}
    for name in (*OPTIMIZERS, ENSEMBLE):
        if not (folder / name).exists():
            continue
        content = checkpoint.list_checkpoints(folder / name)[-1].verify()
        records = content["progress"].get("history", [])
        losses = [(record["train_loss"], record["test_loss"]) for record in records]
        found[name] = json.dumps([content["step"], content["files"], losses])
    return found


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", message=".*is deprecated")
    short_pieces()
    run(Path(sys.argv[1]), stop="stop" in sys.argv[2:])
