"""What is known of an entry before its first run: all that decides its results."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import jax

from jaxcnn.arena.files import PROTOCOL
from jaxcnn.arena.source import source_digest
from jaxcnn.arena.spaces import Space, packaged
from jaxcnn.arena.track import STANDARD, Track
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import environment
from jaxcnn.networks.cpu import library
from jaxcnn.optim.named import find_factory
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.storage import fingerprint
from jaxcnn.train.identity import checksum, code_digest

# What an optimizer brings to a recipe.
_BROUGHT = (
    "learning_rate",
    "weight_decay",
    "optimizer_args",
    "momentum",
    "nesterov",
    "schedule",
    "warmup",
)
# What all optimizers have in common.
_COMMON = ("schedule", "warmup", "dropout", "label_smoothing", "augment", "initialization")


@dataclass(frozen=True)
class Protocol:
    """The numbers of runs.

    Attributes:
        trials: points of the search space.
        seeds: of the best trial and of the defaults, on all training images.
        validation: training images held out for the trials.
    """

    trials: int = 16
    seeds: int = 5
    validation: int = 5000

    @property
    def extension(self) -> int:
        """Number of trials beyond an edge."""
        return max(1, self.trials // 4)


USUAL = Protocol()


def describe(
    track: Track, optimizer: str, space: Space, dataset: Dataset, protocol: Protocol
) -> dict[str, Any]:
    """Returns the fields of an entry that are known before its first run.

    Args:
        track: with the normalization of its data set, see `Track.prepare`.
        optimizer: its name.
        space: its search space.
        dataset: of the track, with its label noise.
        protocol: the numbers of runs.
    """
    recipe = track.for_optimizer(optimizer)
    settings = {
        "dataset": track.dataset,
        "dataset_version": dataset.version,
        "dataset_digest": checksum(dataset.train, dataset.test),
        "network": recipe.network,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "steps": recipe.epochs * -(-len(dataset.train) // recipe.batch_size),
        "validation": protocol.validation,
        "trials": protocol.trials,
        "seeds": protocol.seeds,
        **{name: getattr(track.recipe, name) for name in _COMMON},
        "mean": recipe.mean,
        "std": recipe.std,
        "label_noise": track.label_noise,
        **environment.jax_settings(),
    }
    head = {
        "protocol": PROTOCOL,
        "track": track.name,
        "variant": track.variant,
        "optimizer": optimizer,
        "reference": space.reference,
        "command": _command(track, optimizer, protocol),
        "settings": settings,
        "recipe": {name: getattr(recipe, name) for name in _BROUGHT},
        "code": source_digest(),
        # That of SciPy decides the trials.
        "versions": environment.versions() | {"scipy": importlib.metadata.version("scipy")},
        "space": {name: one.as_list() for name, one in space.ranges.items()},
        "space_source": space.source,
        "default": dict(space.default),
    }
    if optimizer_defaults.is_own(optimizer):
        head["optimizer_code"] = code_digest(find_factory(optimizer))
    plain: dict[str, Any] = fingerprint.of(head)
    return plain


def device() -> str:
    """Returns the device, and on CPU what computes the convolutional layers."""
    if jax.default_backend() != "cpu":
        return environment.device()
    return f"{environment.device()}, {'native' if library.in_use() else 'XLA'} kernels"


def _command(track: Track, optimizer: str, protocol: Protocol) -> str:
    """Returns the command that computes the entry."""
    own = optimizer_defaults.is_own(optimizer) and optimizer not in packaged()
    words = ["jaxcnn arena"]
    words += [f"add {optimizer} --space SPACE.toml --tracks {track.name}"] if own else [track.name]
    if track.variant != STANDARD:
        words.append(f"--variants {track.variant}")
    words += [] if own else [f"--optimizers {optimizer}"]
    for name in ("trials", "seeds", "validation"):
        if (number := getattr(protocol, name)) != getattr(USUAL, name):
            words.append(f"--{name} {number}")
    return " ".join(words)
