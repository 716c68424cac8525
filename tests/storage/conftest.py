"""A run with three checkpoints, saved once."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxcnn.storage.checkpoint import Policy
from jaxcnn.storage.store import open_store

RUN = {"epochs": 3, "mean": (0.1, 0.2)}


def tree(value: float = 0.0) -> dict[str, Any]:
    return {"a": jnp.full((3, 2), value, jnp.float32), "b": jnp.arange(4)}


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("sound")
    with open_store(Policy(folder, keep=3), RUN) as store:
        for step in (1, 2, 3):
            store.save(step, tree(step), {"step": step}, 0.1)
    return folder
