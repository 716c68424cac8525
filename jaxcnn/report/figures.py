"""The figures of a run: images, learning curves, the network, its predictions and mistakes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import make_augment
from jaxcnn.data.dataset import Dataset
from jaxcnn.display.curves import plot_curves
from jaxcnn.display.drawing import (
    Axes,
    ConstrainedLayoutEngine,
    Figure,
    style_axes,
    subplots,
)
from jaxcnn.display.series import TRAIN
from jaxcnn.report.analysis import Analysis
from jaxcnn.train.result import EpochRecord, make_curves
from jaxcnn.train.trained import Trained

_WRONG = "#B22222"
_MOST_MAPS = 16  # feature maps shown of a layer
_MOST_WRITTEN = 30  # classes whose names fit beside each other


def plot_run(
    network: Trained, dataset: Dataset, history: Sequence[EpochRecord], analysis: Analysis
) -> dict[str, Figure]:
    """Plots all figures of a run.

    Args:
        network: the trained network.
        dataset: the data set it was trained on.
        history: a record for each epoch.
        analysis: the network's predictions on the test images.

    Returns:
        The figures by name, which is also the name of the file.
    """
    return {
        "samples": plot_samples(network, dataset),
        "learning-curves": plot_learning_curves(history),
        "feature-maps": plot_feature_maps(network, dataset),
        "kernels": plot_kernels(network),
        "confusion": plot_confusion(analysis, dataset.class_names),
        "mistakes": plot_mistakes(analysis, dataset),
        "reliability": plot_reliability(analysis),
        "classes": plot_class_accuracy(analysis, dataset.class_names),
    }


def plot_samples(network: Trained, dataset: Dataset, columns: int = 10) -> Figure:
    """Plots a training image of each class, and below it three augmented versions.

    Args:
        network: its recipe states the augmentation.
        dataset: the data set it was trained on.
        columns: number of classes to show, at most.
    """
    labels = np.unique(dataset.train.labels)[:columns]
    positions = [int(np.flatnonzero(dataset.train.labels == label)[0]) for label in labels]
    images = np.asarray(dataset.train.images[positions])
    augment = make_augment(network.recipe.augment)
    rows = [images]
    if augment is not None:
        keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 3)
        rows += [np.asarray(augment(key, jnp.asarray(images))) for key in keys]
    figure, axes = _make_grid(len(rows), len(images), 1.05)
    for row, shown in zip(axes, rows, strict=True):
        for axis, image in zip(row, shown, strict=True):
            _show_image(axis, image)
    for axis, label in zip(axes[0], labels, strict=True):
        axis.set_title(dataset.class_names[label], fontsize=9)
    return figure


def plot_learning_curves(history: Sequence[EpochRecord]) -> Figure:
    """Plots loss and accuracy by epoch, on training images (in training mode) and test images."""
    return plot_curves(make_curves(history))


def plot_feature_maps(network: Trained, dataset: Dataset, count: int = 3) -> Figure:
    """Plots the feature maps of test images, a row for each image and a column for each layer.

    Args:
        network: the trained network.
        dataset: the data set it was trained on.
        count: number of test images, at most.
    """
    images = np.asarray(dataset.test.images[:count])
    layers = network.feature_maps(images)
    figure, axes = _make_grid(len(images), 1 + len(layers), 1.5)
    for row, image in zip(axes, images, strict=True):
        _show_image(row[0], image)
    for column, (name, values) in enumerate(layers.items(), start=1):
        axes[0][column].set_title(f"{name}: {values.shape[-1]} maps", fontsize=9)
        for row, maps in zip(axes, values, strict=True):
            shown = maps[..., :_MOST_MAPS]
            row[column].imshow(_arrange_maps(shown), cmap="magma", interpolation="nearest")
    axes[0][0].set_title("image", fontsize=9)
    return figure


def _arrange_maps(values: np.ndarray) -> np.ndarray:
    """Arranges C feature maps in a square, each scaled from its minimum (0) to its maximum (1).

    Args:
        values: float[H, W, C].

    Returns:
        float[H', W'], NaN between and after the maps.
    """
    height, width, count = values.shape
    side = int(np.ceil(count**0.5))
    canvas = np.full((side * (height + 1) - 1, side * (width + 1) - 1), np.nan)
    for index in range(count):
        map_ = values[..., index]
        top, left = index // side * (height + 1), index % side * (width + 1)
        spread = max(float(np.ptp(map_)), 1e-9)
        canvas[top : top + height, left : left + width] = (map_ - map_.min()) / spread
    return canvas


def plot_kernels(network: Trained) -> Figure:
    """Plots the first convolution's kernels, a column for each filter, a row for each channel."""
    kernel = np.asarray(network.variables["params"]["conv1"]["kernel"])
    _, _, channels, filters = kernel.shape
    figure, axes = _make_grid(channels, filters, 1.3)
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


def plot_confusion(analysis: Analysis, names: Sequence[str]) -> Figure:
    """Plots the number of images by label and prediction; the colour shows the mistakes.

    Of more classes than fit beside each other, numbers and names are left out.

    Args:
        analysis: the predictions.
        names: the class names.
    """
    figure, axis = subplots(figsize=(6.4, 5.6))
    counts, classes = analysis.confusion, len(names)
    mistakes = np.where(np.eye(classes, dtype=bool), np.nan, counts.astype(float))
    highest = max(float(np.nanmax(mistakes)), 1.0)
    axis.imshow(mistakes, cmap="Oranges", vmin=0, vmax=highest)
    written = classes <= _MOST_WRITTEN
    for label, prediction in np.ndindex(classes, classes) if written else ():
        count = int(counts[label, prediction])
        if count:
            correct = label == prediction
            on_dark = not correct and count > 0.6 * highest
            axis.text(
                prediction,
                label,
                str(count),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if on_dark else "#444444" if correct else "black",
                fontweight="bold" if correct else "normal",
            )
    rotated = {"rotation": 45, "ha": "right"} if max(map(len, names)) > 2 else {}
    if written:
        axis.set_xticks(range(classes), names, **rotated)
        axis.set_yticks(range(classes), names)
    axis.set(xlabel="prediction", ylabel="label")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def plot_mistakes(analysis: Analysis, dataset: Dataset, count: int = 20) -> Figure:
    """Plots the wrong predictions with the highest confidence.

    Args:
        analysis: the predictions on the test images.
        dataset: the data set.
        count: number of images, at most.
    """
    names = dataset.class_names
    positions = analysis.mistakes(count)
    columns = 10
    rows = max(1, -(-len(positions) // columns))
    figure, axes = _make_grid(rows, columns, 1.05, extra=0.35)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, position in zip(axes.flat, positions, strict=False):
        axis.set_visible(True)
        _show_image(axis, np.asarray(dataset.test.images[position]))
        prediction = names[analysis.predictions[position]]
        label = names[analysis.labels[position]]
        axis.set_title(
            f"{prediction} ({analysis.confidences[position]:.0%})\nlabel: {label}",
            fontsize=7.5,
            color=_WRONG,
        )
    if not len(positions):
        figure.suptitle("no mistakes")
    return figure


def plot_reliability(analysis: Analysis) -> Figure:
    """Plots accuracy against confidence, with the expected calibration error."""
    share, confidence, accuracy = analysis.reliability
    figure, axis = subplots(figsize=(4.8, 4.4))
    axis.plot([0, 1], [0, 1], "--", color="grey", lw=1, label="perfectly calibrated")
    bins = share > 0
    confidence, accuracy, areas = confidence[bins], accuracy[bins], 20 + 400 * share[bins]
    axis.plot(confidence, accuracy, color=TRAIN, lw=1)
    axis.scatter(confidence, accuracy, areas, color=TRAIN, alpha=0.8, label="area: images")
    axis.set(xlim=(0, 1.08), ylim=(0, 1.08), xlabel="confidence", ylabel="accuracy")
    axis.set_title(f"expected calibration error {analysis.calibration_error:.2%}", fontsize=10)
    axis.legend(frameon=False)
    style_axes(axis, grid="both")
    return figure


def plot_class_accuracy(analysis: Analysis, names: Sequence[str]) -> Figure:
    """Plots the per-class accuracy; of many classes, that of the least accurate ones.

    Args:
        analysis: the predictions.
        names: the class names.
    """
    percent = 100 * analysis.class_accuracy
    shown = np.arange(len(names))
    if len(names) > _MOST_WRITTEN:
        shown = np.sort(np.argsort(percent, kind="stable")[:_MOST_WRITTEN])  # NaN comes last
    percent = percent[shown]
    count = len(shown)
    figure, axis = subplots(figsize=(6.4, max(2.0, 0.9 + 0.29 * count)))
    axis.barh(range(count), np.nan_to_num(percent), color=TRAIN, height=0.7)
    lowest = np.nanmin(percent) if not np.isnan(percent).all() else 0.0
    left = max(0.0, np.floor((lowest - 5) / 5) * 5)
    style: dict[str, Any] = {"va": "center", "fontsize": 8}
    for position, value in enumerate(percent):
        if np.isnan(value):
            axis.text(left, position, " no images", **style)
        else:
            axis.text(value, position, f"{value:.1f} ", ha="right", color="white", **style)
    axis.axvline(100 * analysis.accuracy, color="black", lw=1, ls=":")
    axis.set_yticks(range(count), [names[int(label)] for label in shown])
    axis.invert_yaxis()
    axis.set(xlim=(left, 100), xlabel="accuracy, % (dotted line: all classes)")
    style_axes(axis)
    return figure


def _make_grid(rows: int, columns: int, size: float, extra: float = 0.0) -> tuple[Figure, Any]:
    """Makes a grid of axes without ticks and frames.

    Args:
        rows: number of rows.
        columns: number of columns.
        size: width of a column and height of a row, in inches.
        extra: additional height of a row, in inches, for example for titles.

    Returns:
        The figure and its axes, an array [rows, columns].
    """
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


def _show_image(axis: Axes, image: np.ndarray) -> None:
    """Shows an image uint8[H, W, C] of one or three channels."""
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axis.imshow(shown, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
