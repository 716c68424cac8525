"""A trained network, taken from a run's workdir."""

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.data import emnist
from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import MAX_CLASSES, validate_images
from jaxcnn.errors import DataError, UserError, as_path
from jaxcnn.networks import inspect
from jaxcnn.recipes.problems import MNIST
from jaxcnn.recipes.recipe import Recipe, recipe_from_dict
from jaxcnn.storage import checkpoint, document, fingerprint, manifest
from jaxcnn.train import setup, steps
from jaxcnn.train.result import Progress


@dataclass(frozen=True)
class Trained:
    """A network with its parameters, and what it was trained with.

    Attributes:
        recipe: of the run.
        run: all that decides it, see `jaxcnn.train.identity.identity`.
        model: the network, `MnistCNN` or `Cifar10CNN`.
        class_names: by label.
        image_shape: of one image, (H, W, C).
        variables: what its `apply` takes, those to evaluate at.
        checkpoint: where they come from.
        progress: of the run until then.
    """

    recipe: Recipe
    run: dict[str, Any]
    model: Any
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    variables: Any
    checkpoint: checkpoint.Checkpoint
    progress: Progress

    @property
    def title(self) -> str:
        """What it was trained on: "MNIST", "CIFAR-10", or the name of another data set."""
        name = str(self.run["dataset"])
        return self.recipe.title if name.removeprefix("synthetic-") == self.recipe.network else name

    @property
    def reads_digits(self) -> bool:
        """Whether its images are characters as MNIST's, or EMNIST's, which were made likewise."""
        known = self.class_names == MNIST.class_names or self.run["dataset"] in emnist.CLASS_NAMES
        return known and self.image_shape == MNIST.image_shape

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each class, float32[N, classes].

        Args:
            images: uint8[N, H, W, C].

        Raises:
            DataError: they are something else.
        """
        logits = self._predict(self.variables, self._checked(images))
        return np.asarray(jax.nn.softmax(logits))

    def feature_maps(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Returns every convolution's output, see `jaxcnn.networks.inspect.feature_maps`.

        Args:
            images: uint8[N, H, W, C].

        Raises:
            DataError: they are something else.
        """
        maps = self._feature_maps(self.variables, self._checked(images))
        return {name: np.asarray(values) for name, values in maps.items()}

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = validate_images(images, "the images")
        if images.shape[1:] != self.image_shape:
            height, width, channels = self.image_shape
            raise DataError(
                f"the images are {list(images.shape)}: the network takes [N, {height}, {width}, "
                f"{channels}]"
            )
        return images

    @functools.cached_property
    def _normalize(self) -> Callable[[jax.Array], jax.Array]:
        return make_normalize(self.recipe.mean, self.recipe.std)

    @functools.cached_property
    def _predict(self) -> jax.stages.Wrapped:
        """From variables and images to logits, compiled once for each shape."""
        return jax.jit(steps.make_predict(self.model, normalize=self._normalize))

    @functools.cached_property
    def _feature_maps(self) -> jax.stages.Wrapped:
        """From variables and images to feature maps, compiled once for each shape."""
        return jax.jit(
            lambda variables, images: inspect.feature_maps(
                self.model, variables, self._normalize(images)
            )
        )


def load_trained(
    workdir: str | os.PathLike[str],
    which: str = "latest",
    report: Callable[[str], None] = lambda line: None,
    model: nn.Module | None = None,
) -> Trained:
    """Takes a network from a workdir; every file is verified first.

    Args:
        workdir: of a run, or its folder of checkpoints.
        which: "latest", the newest undamaged one; "best", on the test images, whose score of it is
            therefore flattering; or a number of steps.
        report: called with a line of text about checkpoints that are damaged.
        model: the network, if it is not the recipe's.

    Raises:
        UserError: there is no such checkpoint, it is damaged, or it is of another network.
    """
    restore = functools.partial(_restore, own=model)
    folder = as_path(workdir)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    there = checkpoint.list_checkpoints(folder)
    if not there:
        raise UserError(
            f"{folder} holds no checkpoint: give the workdir of a run that has saved one"
        )
    if which == "latest":
        if found := checkpoint.newest_undamaged(folder, restore, report):
            return found[1]
        raise UserError(f"every checkpoint in {folder} is damaged: train again in another folder")
    chosen = checkpoint.best_checkpoint(folder) if which == "best" else None
    if which.isdecimal():
        chosen = next((found for found in there if found.step == int(which)), None)
    if chosen is None:
        known = ", ".join(str(found.step) for found in there)
        raise UserError(
            f"{folder} has no checkpoint {which!r}: take latest, best (if an epoch has ended), or "
            f"one of the steps {known}"
        )
    try:
        return restore(chosen)
    except manifest.DamagedError as error:
        raise UserError(
            f"the checkpoint {chosen.folder} is damaged ({error}): take another one"
        ) from None


def load_all_trained(
    workdir: str | os.PathLike[str], report: Callable[[str], None] = lambda line: None
) -> list[Trained]:
    """Takes the network of every undamaged checkpoint in a workdir, the oldest first.

    Args:
        workdir: as for `load_trained`.
        report: called with a line of text about each damaged checkpoint.

    Raises:
        UserError: there is no such checkpoint, or one is of a network given in code.
    """
    folder = as_path(workdir)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    networks = []
    for found in checkpoint.list_checkpoints(folder):
        try:
            networks.append(_restore(found))
        except manifest.DamagedError as error:
            report(f"the checkpoint {found.folder} is damaged and not used: {error}")
    if not networks:
        raise UserError(
            f"{folder} holds no checkpoint that is undamaged: give the workdir of a run that has "
            "saved one"
        )
    return networks


# Of a run's identity, beside the recipe.
_RUN = {"seed": int} | dict.fromkeys("dataset dataset_version dataset_checksum dtype".split(), str)


def _restore(found: checkpoint.Checkpoint, own: nn.Module | None = None) -> Trained:
    """Returns the network of a checkpoint, every file of which is verified.

    Args:
        found: the checkpoint.
        own: the network, if it is not the recipe's.
    """
    content = found.read()  # `restore` verifies the rest
    run = content["run"]
    if own is not None:
        _check_same(own, run, found)
    elif run.get("model") not in ("MnistCNN", "Cifar10CNN"):
        raise UserError(
            f"{found.folder} was trained with a network given in code, which this does not know: "
            "score it with jaxcnn evaluate --network, or take it from "
            "jaxcnn.train.load_trained(..., model=...)"
        )
    try:
        recipe = recipe_from_dict(run)
        document.check(run, _RUN, "run")
        shape, names = _problem(run, recipe)
        progress = Progress.from_json(content["progress"])
    except (ValueError, TypeError) as error:
        raise manifest.DamagedError(f"{manifest.NAME} is no run's ({error})") from error
    model = own or setup.make_model(recipe, len(names), shape)
    # The network alone: the run may name an optimizer that is code from who knows where.
    like = {"batch_stats": {}} | inspect.variable_shapes(model, shape)
    variables = found.restore({"network": like}, partial=True)["network"]
    return Trained(recipe, run, model, names, shape, variables, found, progress)


def _problem(run: dict[str, Any], recipe: Recipe) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Returns the shape of the images and the names of the classes of a run.

    Raises:
        ValueError: they are none.
    """
    names = run.get("class_names", list(recipe.class_names))
    shape = run.get("image_shape", list(recipe.image_shape))
    document.check(names, [str], "class_names")
    document.check(shape, [int], "image_shape")
    if not 0 < len(names) <= MAX_CLASSES:
        raise ValueError(f"there are {len(names)} classes")
    if len(shape) != 3 or not all(0 < size < 10**4 for size in shape):
        raise ValueError(f"image_shape is {shape}")
    height, width, channels = shape
    return (height, width, channels), tuple(names)


def _check_same(model: nn.Module, run: Mapping[str, Any], found: checkpoint.Checkpoint) -> None:
    """Refuses a network that is not the one that was trained.

    Raises:
        UserError: its class or fields are others.
    """
    here = type(model).__qualname__, fingerprint.of(model)["fields"]
    there = run.get("model"), run.get("model_fields")
    if here != there:
        raise UserError(
            f"{found.folder} was trained with the network {there[0]} with {there[1]}, not with "
            f"{here[0]} with {here[1]}: give that one"
        )
