"""The report of a run: a page that needs no network, and its figures as files."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.display import drawing
from jaxcnn.errors import WORKDIR_REMEDY, writing
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.report import figures
from jaxcnn.report.analysis import Analysis
from jaxcnn.storage import atomic
from jaxcnn.train import doctor
from jaxcnn.train.trained import Trained

REPORT = "report.html"

# The name and title of each figure, by rows of the page.
_ROWS = (
    (("samples", "Training images"),),
    (("learning-curves", "Learning curves"),),
    (("feature-maps", "Feature maps"),),
    (("kernels", "Kernels of the first convolution"),),
    (("confusion", "Confusion matrix"), ("reliability", "Calibration")),
    (("mistakes", "Most confident mistakes"),),
    (("classes", "Per-class accuracy"),),
)
_CSS_PIXELS = 96  # per inch
_BATCH = 500  # images in one call of the network


@dataclass(frozen=True)
class _Section:
    """A figure on the page with its title and caption.

    Attributes:
        name: of the figure, and the section's id.
        title: heading of the section.
        caption: text below the heading.
        alt: description of the figure for screen readers.
        data: the PNG file, in base64.
        width: in CSS pixels.
        height: in CSS pixels.
    """

    name: str
    title: str
    caption: str
    alt: str
    data: str
    width: int
    height: int


def write_report(
    network: Trained, dataset: Dataset, folder: Path, result: Mapping[str, Any] = {}
) -> Path:
    """Writes `report.html` and its figures as PNG files.

    Args:
        network: the trained network.
        dataset: the data set it was trained on.
        folder: where the files are written; created if it does not exist.
        result: the content of the run's result.json, see `jaxcnn.train.records`; empty if the run
            is not finished.

    Returns:
        The path of the page.

    Raises:
        WriteError: the folder cannot be written.
    """
    probabilities = [
        network.probabilities(np.asarray(dataset.test.images[start : start + _BATCH]))
        for start in range(0, len(dataset.test), _BATCH)
    ]
    analysis = Analysis(
        np.asarray(dataset.test.labels), np.concatenate(probabilities).astype(float)
    )
    with writing(folder, WORKDIR_REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        with drawing.own_settings():
            plotted = figures.plot_run(network, dataset, network.progress.history, analysis)
            paths = drawing.save(plotted, folder)
        images = {name: path.read_bytes() for name, path in paths.items()}
    path = folder / REPORT
    atomic.write(path, _render(network, dataset, analysis, images, result).encode())
    return path


def _render(
    network: Trained,
    dataset: Dataset,
    analysis: Analysis,
    images: Mapping[str, bytes],
    result: Mapping[str, Any],
) -> str:
    """Renders page.html.

    Args:
        network: the trained network.
        dataset: the data set it was trained on.
        analysis: the predictions on the test images.
        images: the PNG file of each figure, by name.
        result: as in `write_report`.

    Returns:
        The text of the page.
    """
    # Imported here: only a report needs it.
    import jinja2

    captions = _captions(network, analysis)
    rows = [
        [_section(name, title, captions[name], images[name]) for name, title in row]
        for row in _ROWS
    ]
    title, command = network.title, str(result.get("command", "not recorded"))
    template = jinja2.Template(
        Path(__file__).with_suffix(".html").read_text(), autoescape=True, trim_blocks=True
    )
    return template.render(
        title=f"{title}: {analysis.accuracy:.2%} test accuracy",
        subtitle=_subtitle(network, finished=bool(result)),
        warning=(
            ""
            if dataset.is_real
            else f"Trained on {dataset.name}, a synthetic data set: nothing on this page holds for "
            f"{title}."
        ),
        metrics=_metrics(network, analysis, result),
        rows=rows,
        history=network.progress.history,
        layers=_layers(network),
        command=command if command.isprintable() else "not recorded",
        tables={
            "Recipe": _settings(network),
            "Data, device and versions": _environment(network, dataset, analysis),
        },
    )


def _subtitle(network: Trained, finished: bool) -> str:
    """Describes the run in one line."""
    recipe, epochs = network.recipe, len(network.progress.history)
    return (
        f"recipe {recipe.name}, {epochs} of {recipe.epochs} epochs with {recipe.optimizer}, seed "
        f"{network.run['seed']}" + ("" if finished else "; the run is not finished")
    )


def _metrics(network: Trained, analysis: Analysis, result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metrics at the top of the page, by name."""
    metrics = {"test accuracy": f"{analysis.accuracy:.2%}"}
    if "tta_test_accuracy" in result:
        metrics["with test-time augmentation"] = f"{result['tta_test_accuracy']:.2%}"
    return metrics | {
        "correct predictions": f"{analysis.correct.sum():,}/{len(analysis.labels):,}",
        "parameters": f"{count_parameters(network.variables['params']):,}",
        "training time": _seconds(network.progress.train_seconds),
        "steps": f"{network.checkpoint.step:,}",
    }


def _settings(network: Trained) -> dict[str, str]:
    """Returns everything that determines the run, by name."""
    run = {"seed": network.run["seed"], "dtype": network.run["dtype"]}
    return {name: _value(value) for name, value in {**network.recipe.asdict(), **run}.items()}


def _environment(network: Trained, dataset: Dataset, analysis: Analysis) -> dict[str, str]:
    """Returns the facts about data, device and versions, by name."""
    progress = network.progress
    return {
        "data set": f"{dataset.name} {dataset.version}",
        "training images": f"{len(dataset.train):,}",
        "test images": f"{len(dataset.test):,}",
        "expected calibration error": f"{analysis.calibration_error:.2%}",
        "compilation time": _seconds(progress.compile_seconds),
        "evaluation time": _seconds(progress.eval_seconds),
        "device": progress.device,
        "doctor": doctor.outcome(),
        **progress.versions,
    }


def _layers(network: Trained) -> list[tuple[str, str, str]]:
    """Returns the name, the parameters' shapes and their number of every layer, and the total."""
    layers = network.variables["params"]
    rows = []
    # In the network's order, conv1, batch_norm1, conv2, ..., fc2; the pytree's is alphabetical.
    order = sorted(layers, key=lambda name: (name[:2] == "fc", name[-1], name[:4] != "conv"))
    for name in order:
        leaves = layers[name]
        shapes = ", ".join(
            f"{leaf} {' x '.join(map(str, array.shape))}" for leaf, array in leaves.items()
        )
        rows.append((name, shapes, f"{count_parameters(leaves):,}"))
    return [*rows, ("total", "", f"{count_parameters(layers):,}")]


def _captions(network: Trained, analysis: Analysis) -> dict[str, str]:
    """Returns the caption of each figure, by name."""
    augmented = network.recipe.augment != "none"
    return {
        "samples": "A training image of each class"
        + (
            ", as it is and with three random augmentations."
            if augmented
            else "; the recipe has no augmentation."
        ),
        "learning-curves": "Training metrics are measured in training mode, with dropout and "
        "augmentation, while the parameters change; test metrics after each epoch.",
        "feature-maps": "The output of each convolution for test images, after its ReLU; each map "
        "is scaled from its minimum (dark) to its maximum (bright).",
        "kernels": "Positive weights are red, negative weights are blue.",
        "confusion": "Rows are labels, columns are predictions; the colour shows the mistakes.",
        "reliability": "Accuracy of the predictions against their confidence, in 15 bins.",
        "mistakes": "The prediction with its probability, and the label.",
        "classes": f"Over all test images, {analysis.accuracy:.2%} of the predictions are correct.",
    }


def _section(name: str, title: str, caption: str, content: bytes) -> _Section:
    """Returns the section of a figure; `content` is its PNG file."""
    width, height = struct.unpack(">II", content[16:24])  # of the header chunk, which comes first
    return _Section(
        name=name,
        title=title,
        caption=caption,
        alt=f"{title}. {caption}",
        data=base64.b64encode(content).decode(),
        width=round(width * _CSS_PIXELS / drawing.DPI),
        height=round(height * _CSS_PIXELS / drawing.DPI),
    )


def _seconds(value: float) -> str:
    """Formats seconds, or minutes from 120 s."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _value(value: Any) -> str:
    """Formats the value of a recipe's field."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
