"""Speed and memory of the optimizers on this machine, beside the entries of a track.

They are measured while entries are computed, and are no part of these: no two times are the same.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.arena.files import SPEED
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import atomic, document
from jaxcnn.train.setup import make_model
from jaxcnn.train.state import init_state

_FORM = {
    "device": str,
    "optimizers": {str: {"images_per_second": float, "state_bytes": int}},
}


class Stopwatch:
    """Measures the images that chunks of runs train on in a second.

    Attributes:
        images_per_second: of the fastest chunk, since other programs only slow a chunk down; 0 if
            none was long enough to tell.
    """

    images_per_second = 0.0

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Chunks begin, of a program that is compiled before the first piece of the first one."""
        self._began: float | None = None
        self._images = 0

    def advance(self, images: int) -> None:
        """A piece of a chunk has been trained. The first one, with the compiling, does not count.

        Args:
            images: that it has trained on.
        """
        if self._began is None:
            self._began = time.perf_counter()
        else:
            self._images += images

    def end(self) -> None:
        """A chunk has ended."""
        now = time.perf_counter()
        if self._began is not None and self._images:
            rate = self._images / (now - self._began)
            self.images_per_second = max(self.images_per_second, rate)
        self._began, self._images = now, 0


def state_bytes(recipe: Recipe, dataset: Dataset) -> int:
    """Returns the bytes of an optimizer's state.

    Args:
        recipe: the optimizer and the network.
        dataset: whose images the network is for.
    """
    model = make_model(recipe, dataset.classes, dataset.image_shape)

    def opt_state() -> Any:
        key = jax.random.key(0)
        return init_state(key, model, make_optimizer(recipe, 2), dataset.image_shape).opt_state

    leaves = jax.tree.leaves(jax.eval_shape(opt_state))
    numbers = [one for one in leaves if not jnp.issubdtype(one.dtype, jax.dtypes.prng_key)]
    return sum(one.size * one.dtype.itemsize for one in numbers)


def load_speeds(folder: Path) -> dict[str, Any]:
    """Reads what was measured for a track.

    Args:
        folder: of the track's entries.

    Returns:
        "device", and by optimizer "images_per_second" and "state_bytes"; {} if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SPEED
    try:
        found = document.read_json(path)
        document.check(found, _FORM, "it")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it") from None
    return dict(found)


def add_speeds(folder: Path, device: str, optimizers: dict[str, dict[str, float]]) -> None:
    """Adds what was measured to the file of a track. Other devices' measurements are replaced.

    Args:
        folder: of the track's entries.
        device: that it was measured on.
        optimizers: "images_per_second" and "state_bytes" by optimizer.

    Raises:
        UserError: the file is damaged.
        WriteError: it cannot be written.
    """
    with atomic.locked(folder, ".speed.lock", wait=True):
        found = load_speeds(folder)
        before = found["optimizers"] if found.get("device") == device else {}
        known = dict(sorted((before | optimizers).items()))
        text = json.dumps({"device": device, "optimizers": known}, indent=1)
        atomic.write(folder / SPEED, f"{text}\n".encode())
