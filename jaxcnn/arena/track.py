"""Tracks: a data set, a network and a budget, each in several variants."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxcnn.errors import UserError
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.recipes.recipe import NetworkName, Recipe, one_of

if TYPE_CHECKING:
    from jaxcnn.data.dataset import Dataset

STANDARD = "standard"
VARIANTS = (
    STANDARD,
    "half-batch",
    "large-batch",
    "no-dropout",
    "label-noise",
    "initialization",
    "constant-rate",
    "augmentation",
)

# Each data set with the network for it.
_DATASETS: dict[str, NetworkName] = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "fashion_mnist": "mnist",
    "synthetic-mnist": "mnist",
    "synthetic-cifar10": "cifar10",
}
_SPRINT = "-sprint"
# Epochs of a sprint and of the full budget, and images per step.
_BUDGETS: dict[NetworkName, tuple[int, int, int]] = {"mnist": (1, 5, 64), "cifar10": (2, 10, 128)}
TRACKS = tuple(f"{dataset}{budget}" for dataset in _DATASETS for budget in (_SPRINT, ""))

_NOISE = 0.1  # share of the training labels


@dataclass(frozen=True)
class Track:
    """What optimizers are compared on.

    Attributes:
        name: such as "mnist-sprint".
        variant: one of `VARIANTS`.
        dataset: the data set's name.
        recipe: all hyperparameters; those of an optimizer are replaced, see `for_optimizer`.
        label_noise: share of the training labels that are drawn at random, 0..1.
    """

    name: str
    variant: str
    dataset: str
    recipe: Recipe
    label_noise: float = 0.0

    @property
    def title(self) -> str:
        """Name and variant, as the name of a folder."""
        return track_title(self.name, self.variant)

    def for_optimizer(self, name: str) -> Recipe:
        """Returns the recipe with an optimizer and its defaults."""
        return self.recipe.replace(optimizer=name)

    def prepare(self, dataset: "Dataset") -> "tuple[Track, Dataset]":
        """Returns the track with the normalization of its data set, and the data with its noise.

        Args:
            dataset: of the track's name.
        """
        from jaxcnn.data.own_data import normalized

        track = dataclasses.replace(self, recipe=normalized(self.recipe, dataset))
        return track, with_label_noise(dataset, self.label_noise)


def track_title(name: str, variant: str) -> str:
    """Returns the title of a track: its name, with the variant unless that is the standard.

    Args:
        name: of the track.
        variant: one of `VARIANTS`.
    """
    return name if variant == STANDARD else f"{name}-{variant}"


def find_track(name: str, variant: str = STANDARD) -> Track:
    """Returns a track.

    Args:
        name: one of `TRACKS`.
        variant: one of `VARIANTS`.

    Raises:
        UserError: there is none of that name, or no such variant.
    """
    if name not in TRACKS:
        raise UserError(f"TRACK takes {one_of(TRACKS)}, got {name!r}")
    if variant not in VARIANTS:
        raise UserError(f"--variants takes all, or {one_of(VARIANTS)}, got {variant!r}")
    dataset = name.removesuffix(_SPRINT)
    network = _DATASETS[dataset]
    sprint, full, batch_size = _BUDGETS[network]
    changes: dict[str, dict[str, Any]] = {
        "half-batch": {"batch_size": batch_size // 2},
        "large-batch": {"batch_size": 4 * batch_size},
        "no-dropout": {"dropout": 0.0},
        "initialization": {"initialization": "flax"},
        "constant-rate": {"schedule": "constant", "warmup": 0.0},
        "augmentation": {"augment": "shift" if network == "mnist" else "flip-shift"},
    }
    epochs = full if name == dataset else sprint
    return Track(
        name,
        variant,
        dataset,
        _recipe(network).replace(
            epochs=epochs, **{"batch_size": batch_size} | changes.get(variant, {})
        ),
        _NOISE if variant == "label-noise" else 0.0,
    )


def _recipe(network: NetworkName) -> Recipe:
    """Returns what all tracks of a network have in common."""
    problem = PROBLEMS[network]
    recipe = Recipe(
        name="arena",
        network=network,
        epochs=1,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-3,
        schedule="linear",
        warmup=0.1,
        initialization="pytorch",
        mean=problem.mean,
        std=problem.std,
    )
    # A change of the optimizer brings its defaults, so those of sgd are here too.
    return recipe.replace(optimizer="sgd")


def with_label_noise(dataset: "Dataset", share: float) -> "Dataset":
    """Returns a data set with random labels for some training images, always the same ones.

    Args:
        dataset: to take the images from.
        share: of the training images whose labels are drawn from all classes, 0..1.
    """
    if not share:
        return dataset
    import numpy as np

    from jaxcnn.data.dataset import Split

    generator = np.random.default_rng(0)
    labels = np.array(dataset.train.labels)
    chosen = generator.permutation(len(labels))[: round(share * len(labels))]
    labels[chosen] = generator.integers(dataset.classes, size=len(chosen))
    return dataclasses.replace(dataset, train=Split(dataset.train.images, labels))
