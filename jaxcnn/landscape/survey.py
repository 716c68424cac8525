"""The loss around one trained network, or around each checkpoint of a run, as figures and JSON."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.dataset import Split
from jaxcnn.errors import OUT_REMEDY, UserError, writing
from jaxcnn.landscape.curvature import extreme_eigenvalues
from jaxcnn.landscape.loss import BATCH_SIZE, Loss, make_batches, make_loss, mean_over
from jaxcnn.landscape.noise import gradient_noise
from jaxcnn.landscape.slices import losses_along, losses_on_plane, random_direction
from jaxcnn.storage import atomic
from jaxcnn.train.trained import Trained

_MOST_EIGENVALUES = 50
_RANDOM_DIRECTIONS = 5
# The update is followed to half its length beyond both checkpoints.
_UPDATE_POSITIONS = np.linspace(-1.5, 1.5, 31, dtype=np.float32)
_RANDOM_POSITIONS = np.linspace(-1, 1, 21, dtype=np.float32)
_PLANE_POSITIONS = np.linspace(-1, 1, 17, dtype=np.float32)
# Of the step along the gradient where no update is known, relative to the parameters' norm.
_GRADIENT_LENGTH = 0.1


@dataclass(frozen=True)
class Point:
    """What was measured at one checkpoint.

    Attributes:
        step: optimizer steps taken until then.
        loss: mean cross entropy in nats, in evaluation mode.
        largest_eigenvalues: of the Hessian, the largest first.
        smallest_eigenvalue: of the Hessian.
        gradient_squared_norm: see `jaxcnn.landscape.noise`.
        gradient_trace: see `jaxcnn.landscape.noise`.
        noise_scale: in images; None where the gradient is too small for the images taken.
    """

    step: int
    loss: float
    largest_eigenvalues: list[float]
    smallest_eigenvalue: float
    gradient_squared_norm: float
    gradient_trace: float
    noise_scale: float | None


@dataclass(frozen=True)
class Survey:
    """The loss around a run's checkpoints, over the same images each time.

    Attributes:
        images: number of training images.
        points: by step.
        slice_step: the step of the checkpoint that the slices go through, the last of the points.
        before_step: the step of the checkpoint before, if the first slice follows the update since.
        direction: what the first slice follows, in words.
        update_positions: of the first slice; 0 is the checkpoint.
        update_losses: along the first slice.
        random_positions: of the slices along random directions, filter-normalised.
        random_losses: along each of them.
        plane_positions: along both directions of the plane, which are two of the random ones.
        plane_losses: by the position along the second direction, then along the first.
    """

    images: int
    points: list[Point]
    slice_step: int
    before_step: int | None
    direction: str
    update_positions: list[float]
    update_losses: list[float]
    random_positions: list[float]
    random_losses: list[list[float]]
    plane_positions: list[float]
    plane_losses: list[list[float]]


def check_count(eigenvalues: int) -> None:
    """Checks the number of eigenvalues asked for.

    Raises:
        UserError: it is out of range.
    """
    if not 1 <= eigenvalues <= _MOST_EIGENVALUES:
        raise UserError(
            f"--eigenvalues takes a whole number from 1 to {_MOST_EIGENVALUES}, got {eigenvalues}"
        )


def make_survey(
    networks: Sequence[Trained],
    split: Split,
    *,
    before: Trained | None = None,
    images: int = 1000,
    eigenvalues: int = 5,
    report: Callable[[str], None] = lambda line: None,
) -> Survey:
    """Surveys the loss around the checkpoints of one run.

    Args:
        networks: of one recipe, at least one, by step; the slices go through the last.
        split: the training images.
        before: the checkpoint before the last one, which gives the direction of the last update;
            the negative gradient is taken if None.
        images: number of images, see `jaxcnn.landscape.loss.make_batches`.
        eigenvalues: how many of the largest.
        report: called with a line of text about each checkpoint.

    Raises:
        UserError: there are not that many images, or eigenvalues is out of range.
    """
    check_count(eigenvalues)
    recipe, model = networks[0].recipe, networks[0].model
    loss = make_loss(recipe, model=model)
    smooth_loss = make_loss(recipe, model=model, staged=False)
    points: list[Point] = []
    for network in networks:
        batches = make_batches(split, images, network.variables.get("batch_stats", {}))
        params = network.variables["params"]
        smallest, largest = extreme_eigenvalues(smooth_loss, params, batches, eigenvalues)
        noise = gradient_noise(loss, params, batches, BATCH_SIZE)
        start = jnp.zeros(1)
        point = Point(
            step=network.checkpoint.step,
            loss=float(losses_along(loss, params, params, start, batches)[0]),
            largest_eigenvalues=largest.tolist(),
            smallest_eigenvalue=smallest,
            gradient_squared_norm=float(noise.squared_norm),
            gradient_trace=float(noise.trace),
            noise_scale=noise.scale,
        )
        points.append(point)
        report(describe(point, images))
    direction, update = _find_direction(loss, params, batches, before)
    draws = [random_direction(key, params) for key in _keys(_RANDOM_DIRECTIONS)]
    along = [losses_along(loss, params, draw, _RANDOM_POSITIONS, batches) for draw in draws]
    plane = losses_on_plane(loss, params, (draws[0], draws[1]), _PLANE_POSITIONS, batches)
    return Survey(
        images=images,
        points=points,
        slice_step=points[-1].step,
        before_step=before.checkpoint.step if before is not None else None,
        direction=direction,
        update_positions=_UPDATE_POSITIONS.tolist(),
        update_losses=losses_along(loss, params, update, _UPDATE_POSITIONS, batches).tolist(),
        random_positions=_RANDOM_POSITIONS.tolist(),
        random_losses=np.stack(along).tolist(),
        plane_positions=_PLANE_POSITIONS.tolist(),
        plane_losses=plane.tolist(),
    )


def describe(point: Point, images: int) -> str:
    """Returns what was measured at a checkpoint, as a line of text.

    Args:
        point: the measurement.
        images: number of images.
    """
    noise = (
        f"noise scale {point.noise_scale:,.0f} images"
        if point.noise_scale is not None
        else f"noise scale not resolved by {images:,} images"
    )
    largest = ", ".join(f"{value:.3g}" for value in point.largest_eigenvalues)
    return (
        f"step {point.step:,}: loss {point.loss:.4g}, largest eigenvalues {largest}, smallest "
        f"{point.smallest_eigenvalue:.3g}, {noise}"
    )


def write_survey(surveyed: Survey, folder: Path) -> list[Path]:
    """Writes `landscape.json` and the figures as PNG files.

    Args:
        surveyed: the measurements.
        folder: where the files are written; created if it does not exist.

    Returns:
        The paths of the files.

    Raises:
        WriteError: the folder cannot be written.
    """
    # Imported here: matplotlib takes a while, and only figures need it.
    from jaxcnn.display import drawing
    from jaxcnn.landscape import plots

    path = folder / "landscape.json"
    content = json.dumps(_finite(dataclasses.asdict(surveyed)), indent=1, allow_nan=False) + "\n"
    with writing(folder, OUT_REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
    atomic.write(path, content.encode(), OUT_REMEDY)
    with drawing.own_settings():
        return [path, *drawing.save(plots.plot_survey(surveyed), folder).values()]


def _find_direction(
    loss: Loss, params: Any, batches: Any, before: Trained | None
) -> tuple[str, Any]:
    """Returns the direction of the first slice, in words and as a pytree."""
    if before is not None:
        earlier = before.variables["params"]
        words = f"the update since step {before.checkpoint.step:,}"
        return words, jax.tree.map(jnp.subtract, params, earlier)
    gradient = jax.jit(lambda params, batches: mean_over(jax.grad(loss), params, batches))(
        params, batches
    )
    smallest = float(np.finfo(np.float32).tiny)
    length = _GRADIENT_LENGTH * _norm(params) / max(_norm(gradient), smallest)
    words = f"the negative gradient, {_GRADIENT_LENGTH:.0%} of the parameters' norm"
    return words, jax.tree.map(lambda leaf: -length * leaf, gradient)


def _norm(tree: Any) -> float:
    return float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree))))


def _keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0, impl="threefry2x32"), count)


def _finite(value: Any) -> Any:
    """Replaces numbers that are not finite by None, which JSON has."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
