"""The report of a run: one page that needs no network, and its pictures as files."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import WORKDIR_REMEDY, writing
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.report import analysis, drawing, figures
from jaxcnn.storage import atomic
from jaxcnn.train import doctor
from jaxcnn.train.result import EpochRecord
from jaxcnn.train.trained import Trained

REPORT = "report.html"

# Title, and what is to be seen, by the name of the picture; a row of the page in each line.
_ROWS = (
    (("samples", "What the network sees"),),
    (("learning-curves", "Learning curves"),),
    (("feature-maps", "Feature maps"),),
    (("kernels", "Kernels of the first convolution"),),
    (("confusion", "Confusion"), ("reliability", "Calibration")),
    (("mistakes", "Most confident mistakes"),),
    (("classes", "Accuracy by class"),),
)


@dataclass(frozen=True)
class _Shown:
    """A picture on the page, embedded; width and height in CSS pixels."""

    name: str
    title: str
    text: str
    alt: str
    data: str
    width: int
    height: int


def write_report(
    network: Trained, dataset: Dataset, folder: Path, result: Mapping[str, Any] = {}
) -> Path:
    """Writes `report.html` and the pictures as PNG files.

    Args:
        network: as trained.
        dataset: that it was trained on.
        folder: where they go.
        result: of the run, see `jaxcnn.train.records`; nothing where it has not come to its end.

    Returns:
        The path of the page.

    Raises:
        WriteError: the folder cannot be written.
    """
    history = network.progress.history
    probabilities = [
        network.probabilities(np.asarray(dataset.test.images[start : start + 500]))
        for start in range(0, len(dataset.test), 500)
    ]
    found = analysis.analyse(np.concatenate(probabilities), dataset.test)
    with writing(folder, WORKDIR_REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        with drawing.own_settings():
            paths = drawing.save(figures.draw(network, dataset, history, found), folder)
        shown = {name: path.read_bytes() for name, path in paths.items()}
    page = _page(network, dataset, history, found, shown, result)
    path = folder / REPORT
    atomic.write(path, page.encode())
    return path


def _page(
    network: Trained,
    dataset: Dataset,
    history: list[EpochRecord],
    found: analysis.Analysis,
    pictures: dict[str, bytes],
    result: Mapping[str, Any],
) -> str:
    # Imported here: only a report needs it.
    import jinja2

    right, total = int((found.answers == found.labels).sum()), len(found.labels)
    texts = _texts(network, found)
    rows = [
        [_shown(name, title, texts[name], pictures[name]) for name, title in row] for row in _ROWS
    ]
    network_name, progress = network.recipe.title, network.progress
    ended = bool(result)
    figures_ = [
        ("test accuracy", f"{right / total:.2%}"),
        ("right answers", f"{right:,}/{total:,}"),
        ("parameters", f"{count_parameters(network.variables['params']):,}"),
        ("training", _seconds(progress.train_seconds)),
        ("steps", f"{network.checkpoint.step:,}"),
    ]
    if "tta_test_accuracy" in result:
        figures_.insert(1, ("with test-time augmentation", f"{result['tta_test_accuracy']:.2%}"))
    recipe, command = network.recipe.asdict(), str(result.get("command", "not recorded"))
    settings = {"seed": network.run["seed"], "dtype": network.run["dtype"]}
    data = {
        "data set": f"{dataset.name} {dataset.version}",
        "training images": f"{len(dataset.train):,}",
        "test images": f"{len(dataset.test):,}",
        "expected calibration error": f"{found.calibration_error:.2%}",
        "compiled in": _seconds(progress.compile_seconds),
        "evaluated in": _seconds(progress.eval_seconds),
        "device": progress.device,
        "doctor": doctor.outcome(),
        **progress.versions,
    }
    template = jinja2.Template(
        Path(__file__).with_suffix(".html").read_text(), autoescape=True, trim_blocks=True
    )
    return template.render(
        title=f"{network_name}: {right / total:.2%} of the test images",
        subtitle=(
            f"recipe {network.recipe.name}, {len(history)} of {network.recipe.epochs} epochs with "
            f"{network.recipe.optimizer}, seed {network.run['seed']}"
            + ("" if ended else "; the run has not come to its end")
        ),
        warning=(
            ""
            if dataset.is_real
            else f"{dataset.name} is a drawn stand-in: this says nothing about {network_name}."
        ),
        figures=figures_,
        rows=rows,
        history=history,
        layers=_layers(network),
        command=command if command.isprintable() else "not recorded",
        tables=[
            ("Recipe", [(k, _value(v)) for k, v in {**recipe, **settings}.items()]),
            ("Data, device and versions", list(data.items())),
        ],
    )


def _layers(network: Trained) -> list[tuple[str, str, str]]:
    """Returns name, shapes and number of every layer's parameters."""
    layers = network.variables["params"]
    rows = []
    # In their order, conv1, batch_norm1, conv2, ..., fc2; the tree has them in alphabetical order.
    order = sorted(layers, key=lambda name: (name[:2] == "fc", name[-1], name[:4] != "conv"))
    for name in order:
        leaves = layers[name]
        shapes = ", ".join(
            f"{leaf} {' x '.join(map(str, array.shape))}" for leaf, array in leaves.items()
        )
        rows.append((name, shapes, f"{count_parameters(leaves):,}"))
    return [*rows, ("all", "", f"{count_parameters(layers):,}")]


def _texts(network: Trained, found: analysis.Analysis) -> dict[str, str]:
    augment = network.recipe.augment
    return {
        "samples": "A training image of each class"
        + (
            ", as it is and three times after augmentation."
            if augment != "none"
            else "; there is no augmentation."
        ),
        "learning-curves": "Training is measured in training mode, with dropout and augmentation, "
        "while the network changes; testing after each epoch.",
        "feature-maps": "What each convolution puts out for test images, after its relu, each map "
        "from its darkest to its brightest value.",
        "kernels": "Red is positive, blue negative.",
        "confusion": "Rows are labels, columns answers; the colour is of the mistakes.",
        "reliability": "How often an answer of some confidence is right.",
        "mistakes": "The answer with its probability, and what it should have been.",
        "classes": f"Of all test images {found.accuracy:.2%} are answered right.",
    }


def _shown(name: str, title: str, text: str, content: bytes) -> _Shown:
    width, height = struct.unpack(">II", content[16:24])  # where every PNG file has them
    # Drawn at 130 pixels an inch, shown at the 96 of CSS.
    return _Shown(
        name=name,
        title=title,
        text=text,
        alt=f"{title}. {text}",
        data=base64.b64encode(content).decode(),
        width=round(width * 96 / 130),
        height=round(height * 96 / 130),
    )


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={entry}" for key, entry in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
