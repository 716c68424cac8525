"""What a page shows and computes with: a network, images and predictions, as JSON.

The scripts of `jaxcnn/deploy/page` read it: `contents.js` unpacks weights and images, `network.js`
makes the network of its description.
"""

from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.deploy.layers import describe
from jaxcnn.deploy.packing import pack_images, pack_weights
from jaxcnn.errors import DataError
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.report.analysis import Analysis
from jaxcnn.train.identity import checksum
from jaxcnn.train.trained import Trained

TEST_IMAGES = 500
THUMBNAILS = 300
TRAINING_IMAGES = 5_000
_PER_CELL = 3  # test images wanted for each cell of the confusion matrix
_CELL_PIXELS = 75_000  # of all channels, of further test images; 25 of CIFAR-10 take 55 kB
_PIXELS = 2**20  # of the test images, and of the thumbnails, so that large images are fewer
_BATCH = 500  # images in one call of the network


def page_data(network: Trained, dataset: Dataset | None, trainable: bool = False) -> dict[str, Any]:
    """Collects what a page shows of a network and computes with.

    Args:
        network: as trained.
        dataset: the data set that it was trained on; None where that cannot be loaded.
        trainable: whether to embed `TRAINING_IMAGES` images, with which the page trains.

    Returns:
        Values for JSON: `network`, see `jaxcnn.deploy.layers`; `weights`, see
        `jaxcnn.deploy.packing`, as for all images; `classes`, their names by label; `facts` and
        `warnings` about the run; and `images`, None without a data set, or

        - `test`: images, of which the first `sample` are a random sample of the test set; the
          others are examples of the confusion matrix;
        - `training`: random training images, of which the first `thumbnails` are for display;
        - `confusion`: `counts` by label and prediction over the whole test set, and `examples`, a
          list of [label, prediction, [index in `test`, ...]].

    Raises:
        UserError: the network is one given in code, or the data set is of other images or classes.
    """
    facts, warnings = _facts(network)
    if dataset is None:
        warnings.append("The data set is not at hand, so this page has no images of it.")
    elif checksum(dataset.train, dataset.test) != network.run["dataset_checksum"]:
        warnings.append("The images are not those of the data set that the network is trained on.")
    return {
        "network": describe(network),
        "weights": pack_weights(network.variables),
        "classes": list(network.class_names),
        "facts": facts,
        "warnings": warnings,
        "images": None if dataset is None else _images(network, dataset, trainable),
    }


def _facts(network: Trained) -> tuple[dict[str, Any], list[str]]:
    """Returns facts about a run, and sentences to warn of what they mean."""
    recipe, run, history = network.recipe, network.run, network.progress.history
    dataset = str(run["dataset"])
    facts = {
        "title": network.title,
        "reads_digits": network.reads_digits,
        "recipe": recipe.name,
        "optimizer": recipe.optimizer,
        "seed": run["seed"],
        "step": network.checkpoint.step,
        "test_accuracy": history[-1].test_accuracy if history else None,
        "parameters": count_parameters(network.variables["params"]),
    }
    warnings = []
    if dataset.startswith("synthetic-"):
        warnings.append(
            f"Trained on {dataset}, a synthetic data set: its predictions say nothing "
            f"about {recipe.title}."
        )
    return facts, warnings


def _images(network: Trained, dataset: Dataset, trainable: bool) -> dict[str, Any]:
    """Returns what `page_data` describes as `images`."""
    if tuple(dataset.class_names) != tuple(network.class_names):
        raise DataError(
            f"the classes of {dataset.name} are not the network's: give the data set that it was "
            "trained on"
        )
    test = dataset.test
    probabilities = [
        network.probabilities(np.asarray(test.images[start : start + _BATCH]))
        for start in range(0, len(test), _BATCH)
    ]
    analysis = Analysis(np.asarray(test.labels), np.concatenate(probabilities).astype(float))
    height, width, channels = network.image_shape
    room = _PIXELS // (height * width)
    sample = _sample(test, min(TEST_IMAGES, room))
    others = min(_CELL_PIXELS // (height * width * channels), room - len(sample))
    cells = _cells(analysis, sample, others)
    chosen = list(dict.fromkeys([*sample, *(index for _, _, some in cells for index in some)]))
    place = {index: i for i, index in enumerate(chosen)}
    thumbnails = min(THUMBNAILS, room)
    training = _sample(dataset.train, TRAINING_IMAGES if trainable else thumbnails)
    return {
        "test": {"sample": len(sample), **_packed(test, chosen, exact=True)},
        "training": {
            "thumbnails": min(thumbnails, len(training)),
            **_packed(dataset.train, training, exact=False),
        },
        "confusion": {
            "counts": analysis.confusion.tolist(),
            "examples": [
                [label, prediction, [place[index] for index in some]]
                for label, prediction, some in cells
            ],
        },
    }


def _sample(split: Split, count: int) -> list[int]:
    """Returns the places of random images of a split, always the same ones.

    The first images of a folder would be of one class. Fewer are the first of more.
    """
    order = np.random.default_rng(0).permutation(len(split))
    return [int(index) for index in order[:count]]


def _packed(split: Split, indices: list[int], exact: bool) -> dict[str, Any]:
    images, labels = np.asarray(split.images), np.asarray(split.labels)
    return pack_images(images[indices], labels[indices], exact)


def _cells(analysis: Analysis, sample: list[int], room: int) -> list[tuple[int, int, list[int]]]:
    """Chooses examples for the cells of the confusion matrix.

    Every cell gets its first example before any gets a second one, the fullest cells first.

    Args:
        analysis: of the test images.
        sample: the test images that are embedded anyhow, all of which are examples.
        room: for how many others there is room.

    Returns:
        Label, prediction and test images of each cell that has any.
    """
    counts = analysis.confusion
    classes = len(counts)
    cells = analysis.labels * classes + analysis.predictions
    examples: dict[int, list[int]] = {}
    for index in sample:
        examples.setdefault(int(cells[index]), []).append(index)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    others = np.setdiff1d(np.arange(len(cells)), sample)
    for wanted in range(1, _PER_CELL + 1):
        for cell in order:
            some = examples.setdefault(int(cell), [])
            more = np.setdiff1d(others[cells[others] == cell], some)
            if len(some) < wanted and len(more) and room > 0:
                some.append(int(more[0]))
                room -= 1
    return [
        (cell // classes, cell % classes, some) for cell, some in sorted(examples.items()) if some
    ]
