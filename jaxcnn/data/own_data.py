"""Data sets of the user's own: an .npz file, or a folder with a folder of images for each class."""

import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxcnn.data import cache
from jaxcnn.data.cache import Arrays
from jaxcnn.data.dataset import Dataset, Split, from_arrays
from jaxcnn.data.image_files import FORMATS, FORMATS_TEXT, read_image, scale_image
from jaxcnn.errors import DataError, as_path
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import atomic
from jaxcnn.storage.manifest import short_digest

# The arrays of an .npz file, by our names and by those of Keras's data sets.
_NAMES = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels", "", ""),
)
# Images that all have one size keep it up to this side, in pixels: the networks are for small ones.
_LARGEST_SIDE = 128
_GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")  # Pillow's modes


def load_own(
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
    *,
    hold_out: float = 0.1,
    cache_dir: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Loads a data set of the user's own.

    Where it has no test images, a share of each class is held out of the training images, the same
    at every call.

    Args:
        path: an `.npz` file with the arrays `train_images`, `train_labels`, `test_images` and
            `test_labels`, or `x_train`, `y_train`, `x_test` and `y_test`, or only the first two, or
            `images` and `labels`; and `class_names` if they have names. Or a folder with a folder
            of images for each class, `FOLDER/CLASS/*.png`, or with two such folders
            `FOLDER/train/CLASS/*.png` and `FOLDER/test/CLASS/*.png`.
        image_shape: (H, W, C) to which the images of a folder are scaled if they have several
            sizes, or one above 128 pixels. They are grey if all of them are.
        hold_out: share of the images to test on, between 0 and 1.
        cache_dir: the folder of decoded images, see `jaxcnn.data.dataset.load_data`.
        report: called with a line of text before a slow operation.

    Returns:
        The data set, named by its path's last part, with a slash at the end of a folder's.

    Raises:
        DataError: there is no data, or it cannot be used; the message names the first offender.
        WriteError: the cache cannot be written.
    """
    path = as_path(path)
    if path.is_dir():
        files = _list_files(path)
        images, shape = _common_shape(path, files, image_shape)
        if left_out := len(files) - len(images):
            report(f"{path}: {left_out} files are no {FORMATS_TEXT} files and are left out")
        arrays = cache.load_or_build(
            atomic.cache_root(cache_dir) / f"own-{short_digest(str(path.resolve()))}",
            fingerprint={
                "shape": list(shape),
                "hold_out": hold_out,
                "files": _states(path, images),
            },
            build=lambda: _decode(path, images, shape, hold_out, report),
            report=report,
        )
        return from_arrays(f"{path.name}/", "own", arrays)
    if path.suffix == ".npz" and path.is_file():
        splits, names = _read_npz(path, hold_out)
        return Dataset(path.name, "own", splits[0], splits[1], names)
    raise DataError(
        f"{path} is neither a folder nor an .npz file: give one that is there, with images and "
        "labels"
    )


def normalized(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Returns a recipe with the normalization of a data set.

    Args:
        recipe: the hyperparameters.
        dataset: whose training images have the mean and the standard deviation; for the network's
            own data set, or the synthetic one of its form, the recipe stays as it is.
    """
    if dataset.name.removeprefix("synthetic-") == recipe.network:
        return recipe
    mean, std = dataset.moments()
    return recipe.replace(mean=mean, std=std)


def _read_npz(path: Path, hold_out: float) -> tuple[list[Split], tuple[str, ...]]:
    """Returns the splits and the class names of an .npz file."""
    try:
        # Opened here: numpy leaves a file that is none of its own to the garbage collector.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            names_there = file.files if isinstance(file, np.lib.npyio.NpzFile) else ()
            arrays = {name: file[name] for name in names_there}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read ({reason}): save it with numpy.savez(path, train_images=..., "
            "train_labels=...)"
        ) from error
    known = next((names for names in _NAMES if set(names[:2]) <= arrays.keys()), None)
    if known is None:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: give it the arrays train_images, "
            "train_labels, test_images and test_labels"
        )
    names = arrays.get("class_names", np.array((), str))
    if names.ndim != 1 or (names.size and names.dtype.kind != "U"):
        raise DataError(f"{path}: class_names are {names.dtype}{list(names.shape)}: give strings")
    parts = [arrays.get(name) for name in known]
    train = Split(*parts[:2])  # type: ignore[arg-type]
    if parts[2] is not None and parts[3] is not None:
        return [train, Split(parts[2], parts[3])], tuple(names.tolist())
    # Checked before it is cut, so that a message gives the position in the file.
    whole = Dataset(path.name, "own", train, train, tuple(names.tolist()))
    return held_out(whole.train, hold_out, path), whole.class_names


def held_out(split: Split, share: float, path: Path) -> list[Split]:
    """Cuts a split in two, class by class, always in the same way.

    Args:
        split: to cut.
        share: of each class that is held out, at least one of two images.
        path: of the data, for error messages.

    Returns:
        The images to train on, and those to test on.

    Raises:
        DataError: there are too few.
    """
    order = np.random.default_rng(0).permutation(len(split))
    chosen = np.zeros(len(split), bool)
    for label in np.unique(split.labels):
        positions = order[split.labels[order] == label]
        count = max(round(share * len(positions)), 1) if len(positions) > 1 else 0
        chosen[positions[:count]] = True
    if chosen.all() or not chosen.any():
        raise DataError(f"{path} has too few images to hold some out: give it test images")
    images = np.asanyarray(split.images)
    return [Split(images[part], split.labels[part]) for part in (~chosen, chosen)]


# The files of each split and class: [(split, class, path), ...].
_Files = list[tuple[str, str, Path]]


def _list_files(path: Path) -> _Files:
    """Returns all files below the folders of the classes, sorted."""
    try:
        splits = [split for split in ("train", "test") if (path / split).is_dir()]
        roots = {split: path / split for split in splits} if "train" in splits else {"train": path}
        files = [
            (split, folder.name, file)
            for split, root in roots.items()
            for folder in sorted(root.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
            for file in sorted(folder.iterdir())
            if file.is_file() and not file.name.startswith(".")
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): {path}") from error
    if not any(split == "train" for split, _, _ in files):
        raise DataError(
            f"{path} holds no folders with images: give it one for each class, or train/ and test/ "
            "with one for each class"
        )
    return files


def _states(path: Path, files: _Files) -> list[list[Any]]:
    """Returns the name, size and time of each file, as JSON values."""
    states = [(file, file.stat()) for _, _, file in files]
    return [[str(f.relative_to(path)), state.st_size, state.st_mtime_ns] for f, state in states]


def _common_shape(
    path: Path, files: _Files, image_shape: tuple[int, int, int]
) -> tuple[_Files, tuple[int, int, int]]:
    """Returns those files that are images, and their shape.

    Only the beginning of each file is read.
    """
    sizes, modes, images = set(), set(), []
    for entry in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(entry[2], formats=FORMATS) as image:
                    sizes.add(image.size)
                    modes.add(image.mode)
                    images.append(entry)
        except (OSError, ValueError, Image.DecompressionBombError):
            if entry[2].suffix.lower() in Image.registered_extensions():
                raise DataError(
                    f"{entry[2]} cannot be read as an image: replace it, or remove it"
                ) from None
    if not images:
        raise DataError(f"{path} holds no {FORMATS_TEXT} files: give it images")
    channels = 1 if modes <= set(_GREY) else 3
    (width, height), *others = sizes
    if others or max(width, height) > _LARGEST_SIDE:
        height, width, _ = image_shape
    return images, (height, width, channels)


def _decode(
    path: Path,
    files: _Files,
    shape: tuple[int, int, int],
    hold_out: float,
    report: Callable[[str], None],
) -> Arrays:
    """Reads and scales all images of a folder."""
    report(f"reading {len(files):,} images in {path} as {shape[0]} x {shape[1]} pixels, once")
    names = sorted({name for split, name, _ in files if split == "train"})
    for split, name, file in files:
        if name not in names:
            raise DataError(
                f"{file.parent} is a class of the {split} images alone: give {path / 'train'} a "
                "folder of that name"
            )
    splits = {}
    for split in ("train", "test"):
        chosen = [(name, file) for of, name, file in files if of == split]
        images = np.empty((len(chosen), *shape), np.uint8)
        for image, (_, file) in zip(images, chosen, strict=True):
            image[...] = scale_image(read_image(file, str(file)), shape)
        labels = np.array([names.index(name) for name, _ in chosen], np.int32)
        splits[split] = Split(images, labels)
    if not len(splits["test"]):
        splits["train"], splits["test"] = held_out(splits["train"], hold_out, path)
    return Arrays(as_arrays(splits), tuple(names))


def as_arrays(splits: Mapping[str, Split]) -> dict[str, np.ndarray]:
    """Returns splits as the arrays of a cache."""
    return {
        f"{name}_{part}": getattr(split, part)
        for name, split in splits.items()
        for part in ("images", "labels")
    }
