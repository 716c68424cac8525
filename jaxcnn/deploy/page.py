"""A page with a network that runs, explains itself and trains in the browser, as one HTML file."""

import json
import os
from pathlib import Path
from typing import Any

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy.page_data import page_data
from jaxcnn.display.script import source_expression, within_script
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes.problems import MNIST
from jaxcnn.storage import atomic
from jaxcnn.train.trained import Trained

SCRIPTS = {
    # A script of its own, since the worker that trains takes its source from the page, too.
    "engine": (
        "product.js",
        "layers.js",
        "pooling.js",
        "random.js",
        "network.js",
        "optimizers.js",
        "contents.js",
    ),
    "training": ("training.js",),
    "interface": (
        "resampling.js",
        "ink.js",
        "preparation.js",
        "image_file.js",
        "elements.js",
        "colours.js",
        "model.js",
        "pad.js",
        "pen.js",
        "camera.js",
        "prediction.js",
        "maps.js",
        "unit.js",
        "explanation.js",
        "attribution.js",
        "neighbours.js",
        "dropout.js",
        "statistics.js",
        "damage.js",
        "curves.js",
        "trainer.js",
        "confusion.js",
        "start.js",
    ),
}
"""The files of `jaxcnn/deploy/page`, in their order: those that make a network run, what the worker
that trains it needs beside them, and those that prepare images and are the user interface."""

MEDIA_TYPES = ("image/png", "image/jpeg", "image/bmp", "image/gif", "image/webp")
"""Of the image files that every browser reads."""

_FOLDER = Path(__file__).with_name("page")
_REMEDY = "give --out a path in a folder that is there, can be written and has room"


def check_page(path: str | os.PathLike[str]) -> Path:
    """Refuses a path to which no page can be written, before any work is done.

    Args:
        path: of the file to write.

    Returns:
        The path.

    Raises:
        UserError: the path does not end in .html, is a folder, or its folder is missing.
    """
    path = as_path(path)
    if path.suffix != ".html":
        raise UserError(f"--out {path} does not end in .html: give the file such a name")
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; {_REMEDY}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: the folder {path.parent} is not there; {_REMEDY}")
    return path


def write_page(
    network: Trained,
    dataset: Dataset | None,
    path: str | os.PathLike[str],
    *,
    trainable: bool = True,
) -> Path:
    """Writes the page atomically, replacing an existing file.

    Args:
        network: as trained.
        dataset: see `jaxcnn.deploy.page_data`.
        path: of the file, with the suffix .html.
        trainable: whether to embed training images, with which the page trains.

    Returns:
        The path of the file.

    Raises:
        UserError: see `check_page` and `jaxcnn.deploy.page_data`.
        WriteError: the file cannot be written.
    """
    path = check_page(path)
    atomic.write(path, render_page(network, dataset, trainable=trainable).encode(), _REMEDY)
    return path


def render_page(network: Trained, dataset: Dataset | None, *, trainable: bool = True) -> str:
    """Returns the page, in HTML, which needs no other file and no network.

    Args:
        network: as trained.
        dataset: see `jaxcnn.deploy.page_data`.
        trainable: whether to embed training images, with which the page trains.

    Raises:
        UserError: see `jaxcnn.deploy.page_data`.
    """
    # Imported here, so that a mistake on the command line is reported at once.
    import jinja2
    from markupsafe import Markup

    data = page_data(network, dataset, trainable)
    style = (_FOLDER / "page.css").read_text()
    scripts = {name: read_scripts(files) for name, files in SCRIPTS.items()}
    template = jinja2.Template(
        (_FOLDER / "page.html").read_text(),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    hashes = " ".join(source_expression(scripts[name]) for name in ("engine", "interface"))
    return template.render(
        policy=_POLICY.format(scripts=hashes, style=source_expression(style)),
        style=Markup(style),
        scripts={name: Markup(text) for name, text in scripts.items()},
        data=Markup(within_script(json.dumps(data, separators=(",", ":")))),
        **_texts(network, data),
        trains=trainable and data["images"] is not None,
        accept=",".join(MEDIA_TYPES),
    )


def read_scripts(names: tuple[str, ...]) -> str:
    """Returns scripts as one.

    Args:
        names: of the files in `jaxcnn/deploy/page`.
    """
    return "\n".join((_FOLDER / name).read_text() for name in names)


# Nothing from elsewhere: the page's own script and style, by their hashes, images that the user
# opens, and the worker that the page makes of its script.
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {style}; img-src blob: data:; "
    "worker-src blob:; base-uri 'none'; form-action 'none'"
)


def _texts(network: Trained, data: dict[str, Any]) -> dict[str, Any]:
    """Returns what the template says of the network."""
    facts, images = data["facts"], data["images"]
    draws = facts["reads_digits"]
    digits = draws and network.class_names == MNIST.class_names
    noun = "digit" if digits else "character" if draws else "class"
    score = facts["test_accuracy"]
    accuracy = "" if score is None else f"; test accuracy {score:.2%}"
    return {
        "title": f"{facts['title']}: {f'draw a {noun}' if draws else 'show it a photograph'}",
        "subtitle": (
            f"recipe {facts['recipe']} with {facts['optimizer']}, seed {facts['seed']}, "
            f"step {facts['step']:,}{accuracy}; {facts['parameters']:,} parameters"
        ),
        "draws": draws,
        "noun": noun,
        "warnings": data["warnings"],
        "classes": data["classes"],
        "images": images is not None,
        "sample": f"{images['test']['sample']:,}" if images else "",
        "training_images": f"{len(images['training']['labels']):,}" if images else "",
    }
