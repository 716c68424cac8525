"""The pictures of a run: what the network saw, how it learned, and what it gets wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import make_augment
from jaxcnn.data.dataset import Dataset
from jaxcnn.report.analysis import Analysis
from jaxcnn.report.drawing import (
    Axes,
    ConstrainedLayoutEngine,
    Figure,
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    subplots,
)
from jaxcnn.train.result import EpochRecord
from jaxcnn.train.trained import Trained

# Told apart by the colour-blind too.
_TRAIN, _TEST, _WRONG = "#0072B2", "#D55E00", "#B22222"
_CONVOLUTIONS_SHOWN = 16
# In percent: where an accuracy of 100 % lies on a logarithmic axis of errors.
_LEAST_ERROR = 0.02
_ACCURACY_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 100)


def draw(
    network: Trained, dataset: Dataset, history: Sequence[EpochRecord], found: Analysis
) -> dict[str, Figure]:
    """Draws the pictures of a run, by their names.

    Args:
        network: as trained.
        dataset: that it was trained on.
        history: of the epochs.
        found: its answers to the test images.
    """
    pictures: dict[str, Callable[[], Figure]] = {
        "samples": lambda: samples(network, dataset),
        "learning-curves": lambda: learning_curves(history),
        "feature-maps": lambda: maps(network, dataset),
        "kernels": lambda: kernels(network),
        "confusion": lambda: confusion(found, dataset.class_names),
        "mistakes": lambda: mistakes(found, dataset),
        "reliability": lambda: reliability(found),
        "classes": lambda: classes(found, dataset.class_names),
    }
    return {name: make() for name, make in pictures.items()}


def samples(network: Trained, dataset: Dataset, columns: int = 10) -> Figure:
    """A training image of each class, and below it three augmented versions."""
    labels = np.unique(dataset.train.labels)[:columns]
    positions = [int(np.flatnonzero(dataset.train.labels == label)[0]) for label in labels]
    images = np.asarray(dataset.train.images[positions])
    augment = make_augment(network.recipe.augment)
    rows = [images]
    if augment is not None:
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 3)
        rows += [np.asarray(augment(key, jnp.asarray(images))) for key in keys]
    figure, axes = _grid(len(rows), len(images), 1.05)
    for row, shown in zip(axes, rows, strict=True):
        for axis, image in zip(row, shown, strict=True):
            _image(axis, image)
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(dataset.class_names[label], fontsize=9)
    return figure


def learning_curves(history: Sequence[EpochRecord]) -> Figure:
    """Loss and accuracy by epoch, on training images (in training mode) and test images."""
    figure, axes = subplots(1, 2, figsize=(9, 3.6))
    epochs = [record.epoch for record in history]
    for axis, name, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
        for split, colour, style in (("train", _TRAIN, "--"), ("test", _TEST, "-")):
            values = [scale * getattr(record, f"{split}_{name}") for record in history]
            axis.plot(epochs, values, style, marker="o", ms=3, color=colour, label=split)
        axis.set(xlabel="epoch", ylabel="loss, nats" if scale == 1 else "accuracy, %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    least, most = axes[0].dataLim.intervaly
    if most > 5 * least:
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[0].yaxis.set_minor_formatter(NullFormatter())
    least, most = axes[1].dataLim.intervaly
    if 100 - least > 10 * (100 - most):
        # By the logarithm of the error: else all but the first epochs lie on one line.
        axes[1].set_yscale("function", functions=(_by_error, _percent_at))
        axes[1].yaxis.set_major_locator(FixedLocator(_ACCURACY_TICKS))
        axes[1].yaxis.set_major_formatter("{x:g}")
        axes[1].set_ylabel("accuracy, % (log scale of errors)")
    axes[0].legend(frameon=False)
    return figure


def _by_error(percent: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(100 + _LEAST_ERROR - percent, _LEAST_ERROR))


def _percent_at(place: np.ndarray) -> np.ndarray:
    return 100 + _LEAST_ERROR - 10.0**-place


def maps(network: Trained, dataset: Dataset, count: int = 3) -> Figure:
    """The feature maps of every convolution for some test images, a column for each layer."""
    images = np.asarray(dataset.test.images[:count])
    layers = network.feature_maps(images)
    figure, axes = _grid(len(images), 1 + len(layers), 1.5)
    for row, image in zip(axes, images, strict=True):
        _image(row[0], image)
    for column, (name, values) in enumerate(layers.items(), start=1):
        axes[0][column].set_title(f"{name}: {values.shape[-1]} maps", fontsize=9)
        for row, own in zip(axes, values, strict=True):
            shown = own[..., :_CONVOLUTIONS_SHOWN]
            row[column].imshow(_mosaic(shown), cmap="magma", interpolation="nearest")
    axes[0][0].set_title("image", fontsize=9)
    return figure


def _mosaic(values: np.ndarray) -> np.ndarray:
    """Arranges [H, W, C] as a square of C pictures, each from its own minimum to its maximum."""
    height, width, count = values.shape
    side = int(np.ceil(count**0.5))
    canvas = np.full((side * (height + 1) - 1, side * (width + 1) - 1), np.nan)
    for index in range(count):
        one = values[..., index]
        top, left = index // side * (height + 1), index % side * (width + 1)
        spread = max(float(np.ptp(one)), 1e-9)
        canvas[top : top + height, left : left + width] = (one - one.min()) / spread
    return canvas


def kernels(network: Trained) -> Figure:
    """The kernels of the first convolution: of each filter, one picture for each input channel."""
    kernel = np.asarray(network.variables["params"]["conv1"]["kernel"])
    _, _, channels, filters = kernel.shape
    figure, axes = _grid(channels, filters, 1.3)
    limit = float(np.abs(kernel).max())
    names = ("red", "green", "blue") if channels == 3 else ("",)
    for channel, row in enumerate(axes):
        for index, axis in enumerate(row):
            axis.imshow(kernel[..., channel, index], cmap="RdBu_r", vmin=-limit, vmax=limit)
        if names[channel]:
            row[0].set_ylabel(names[channel], fontsize=9)
    for index, axis in enumerate(axes[0], start=1):
        axis.set_title(f"filter {index}", fontsize=9)
    return figure


def confusion(found: Analysis, names: Sequence[str]) -> Figure:
    """Pictures by label and answer; the colour is of the mistakes."""
    figure, axis = subplots(figsize=(6.4, 5.6))
    counts = found.confusion
    wrong = np.where(np.eye(10, dtype=bool), np.nan, counts.astype(float))
    highest = max(float(np.nanmax(wrong)), 1.0)
    axis.imshow(wrong, cmap="Oranges", vmin=0, vmax=highest)
    for label, answer in np.ndindex(10, 10):
        count = int(counts[label, answer])
        if count:
            right = label == answer
            dark = not right and count > 0.6 * highest
            axis.text(
                answer,
                label,
                str(count),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#444444" if right else "black",
                fontweight="bold" if right else "normal",
            )
    turned = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 2 else {}
    axis.set_xticks(range(10), names, **turned)
    axis.set_yticks(range(10), names)
    axis.set(xlabel="answer", ylabel="label")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def mistakes(found: Analysis, dataset: Dataset, count: int = 20) -> Figure:
    """The wrong answers with the highest confidence."""
    positions = found.mistakes(count)
    columns = 10
    rows = max(1, -(-len(positions) // columns))
    figure, axes = _grid(rows, columns, 1.05, extra=0.35)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, position in zip(axes.flat, positions, strict=False):
        axis.set_visible(True)
        _image(axis, np.asarray(dataset.test.images[position]))
        label, answer = found.labels[position], found.answers[position]
        names = dataset.class_names
        axis.set_title(
            f"{names[answer]} {found.confidences[position]:.0%}\nis {names[label]}",
            fontsize=7.5,
            color=_WRONG,
        )
    if not len(positions):
        figure.suptitle("no mistakes")
    return figure


def reliability(found: Analysis) -> Figure:
    """Accuracy by confidence, and the expected calibration error."""
    share, confidence, accuracy = found.reliability
    figure, axis = subplots(figsize=(4.8, 4.4))
    axis.plot([0, 1], [0, 1], "--", color="grey", lw=1, label="perfectly calibrated")
    sizes = 20 + 400 * share
    there = share > 0
    axis.plot(confidence[there], accuracy[there], color=_TRAIN, lw=1)
    here = confidence[there], accuracy[there], sizes[there]
    axis.scatter(*here, color=_TRAIN, alpha=0.8, label="area: pictures")
    axis.set(xlim=(0, 1.08), ylim=(0, 1.08), xlabel="confidence", ylabel="accuracy")
    axis.set_title(f"expected calibration error {found.calibration_error:.2%}", fontsize=10)
    axis.legend(frameon=False, loc="upper left")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def classes(found: Analysis, names: Sequence[str]) -> Figure:
    """Accuracy by class."""
    figure, axis = subplots(figsize=(6.4, 3.8))
    values = 100 * found.accuracy_by_class
    axis.barh(range(10), np.nan_to_num(values), color=_TRAIN, height=0.7)
    low = np.nanmin(values) if not np.isnan(values).all() else 0.0
    left = max(0.0, np.floor((low - 5) / 5) * 5)
    for position, value in enumerate(values):
        inside: dict[str, Any] = {"va": "center", "fontsize": 8}
        if np.isnan(value):
            axis.text(left, position, " no pictures", **inside)
        else:
            axis.text(value, position, f"{value:.1f} ", ha="right", color="white", **inside)
    axis.axvline(100 * found.accuracy, color="black", lw=1, ls=":")
    axis.set_yticks(range(10), names)
    axis.invert_yaxis()
    axis.set(xlim=(left, 100), xlabel="accuracy, % (dotted: of all)")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _grid(rows: int, columns: int, size: float, extra: float = 0.0) -> tuple[Figure, Any]:
    """Returns a figure of bare axes, always [rows, columns] of them."""
    figure, axes = subplots(
        rows,
        columns,
        figsize=(size * columns + 0.2, (size + extra) * rows + 0.3),
        squeeze=False,
        layout=ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05),
    )
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    return figure, axes


def _image(axis: Axes, image: np.ndarray) -> None:
    """Shows uint8[H, W, C]."""
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
