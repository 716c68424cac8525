"""A small track, which the tests of the arena share."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.arena.description import Protocol
from jaxcnn.arena.entry import run_entry
from jaxcnn.arena.files import Entry
from jaxcnn.arena.spaces import Range, Space, find_space
from jaxcnn.arena.track import Track, find_track
from jaxcnn.data.dataset import Dataset
from tests.linear import Linear

PROTOCOL = Protocol(trials=4, seeds=2, validation=60)
TRACK = find_track("mnist-sprint")
TRACK = dataclasses.replace(TRACK, recipe=TRACK.recipe.replace(batch_size=30))


def space_of(optimizer: str, **ends: tuple[float, float]) -> Space:
    """The space of an optimizer, with other ends of some ranges."""
    space = find_space(TRACK.for_optimizer(optimizer))
    return dataclasses.replace(
        space, ranges=dict(space.ranges) | {name: Range(*two) for name, two in ends.items()}
    )


def compute(
    dataset: Dataset,
    folder: Path,
    optimizer: str = "sgd",
    space: Space | None = None,
    track: Track = TRACK,
    **options: Any,
) -> Entry:
    """Computes an entry of the small track below a workdir."""
    options = {"protocol": PROTOCOL} | options
    space = space or space_of(optimizer)
    return run_entry(track, optimizer, space, dataset, folder / track.title, **options)


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets entries train a network that is quick to compile."""
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: Linear())
    monkeypatch.setattr("jaxcnn.arena.speed.make_model", lambda *_: Linear())


@pytest.fixture(scope="session")
def computed(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    """A workdir with the entries of sgd and adamw."""
    folder = tmp_path_factory.mktemp("arena")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.setup.make_model", lambda *_: Linear())
        patch.setattr("jaxcnn.arena.speed.make_model", lambda *_: Linear())
        for optimizer in ("sgd", "adamw"):
            compute(tiny_mnist, folder, optimizer)
    return folder
