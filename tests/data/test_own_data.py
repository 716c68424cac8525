import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.data.own_data import load_own, normalized
from jaxcnn.errors import DataError, UserError
from jaxcnn.recipes import named

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 12, 8, 1), np.uint8)
LABELS = np.arange(40) % 4
SHAPE = (28, 28, 1)


def picture(path: Path, size: tuple[int, int] = (12, 8), mode: str = "L", shade: int = 9) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, shade if mode == "L" else (shade, 0, 0)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of each of two classes."""
    for name, shade in (("cat", 40), ("dog", 200)):
        for index in range(10):
            picture(tmp_path / "pets" / name / f"{index}.png", shade=shade + index)
    return tmp_path / "pets"


def load(path: Path, **options: Any) -> Any:
    return load_own(path, SHAPE, cache_dir=path.parent / "cache", **options)


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_arrays(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = dict(zip(names, (IMAGES, LABELS, IMAGES[:8], LABELS[:8]), strict=True))
    np.savez(tmp_path / "x.npz", **arrays, class_names=np.array(["a", "b", "c", "d"]))
    dataset = load(tmp_path / "x.npz")
    np.testing.assert_array_equal(dataset.train.images, IMAGES)
    np.testing.assert_array_equal(dataset.test.labels, LABELS[:8])
    assert dataset.class_names == ("a", "b", "c", "d")
    assert (dataset.name, dataset.is_own, dataset.is_real) == ("x.npz", True, True)


@pytest.mark.parametrize("names", [("images", "labels"), ("train_images", "train_labels")])
def test_arrays_without_a_test_split(names: tuple[str, ...], tmp_path: Path) -> None:
    """The same share of each class is held out."""
    np.savez_compressed(tmp_path / "x.npz", **dict(zip(names, (IMAGES, LABELS), strict=True)))
    dataset = load(tmp_path / "x.npz", hold_out=0.3)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [3, 3, 3, 3])
    both = np.concatenate([dataset.train.images, dataset.test.images])
    assert {image.tobytes() for image in both} == {image.tobytes() for image in IMAGES}
    again = load(tmp_path / "x.npz", hold_out=0.3)
    np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_the_normalization_is_of_the_training_images(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 100, (30, 8, 8, 2), np.uint8)
    images[..., 1] = 51
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(30) % 3)
    dataset = load(tmp_path / "x.npz")
    recipe = normalized(named.recipe("mnist", "fast"), dataset)
    pixels = dataset.train.images[..., 0] / 255
    np.testing.assert_allclose(recipe.mean, (pixels.mean(), 0.2), atol=6e-5)
    np.testing.assert_allclose(recipe.std, (pixels.std(), 1.0), atol=6e-5)
    real = dataclasses.replace(dataset, name="mnist")
    assert normalized(recipe, real) is recipe


def test_arrays_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, pixels=IMAGES)
    with pytest.raises(DataError, match=r"x.npz holds pixels: give it the arrays train_images"):
        load(path)
    np.savez(path, images=IMAGES, labels=np.array([object()] * 40))
    with pytest.raises(DataError, match=r"x.npz cannot be read \(.*pickle.*: save it with"):
        load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"x.npz cannot be read \(.*: save it with"):
        load(path)
    np.savez(path, images=IMAGES, labels=LABELS, class_names=np.arange(4))
    with pytest.raises(DataError, match=r"class_names are int64\[4\]: give strings"):
        load(path)
    np.savez(path, images=IMAGES, labels=LABELS - 1)
    with pytest.raises(DataError, match="has the label -1 at position 0"):
        load(path)
    np.savez(path, images=IMAGES[:2], labels=LABELS[:2])
    with pytest.raises(DataError, match="too few images to hold some out: give it test images"):
        load(path)
    with pytest.raises(DataError, match=r"is neither a folder nor an .npz file"):
        load(tmp_path / "missing.npz")


def test_a_folder(folder: Path) -> None:
    lines: list[str] = []
    (folder / ".hidden").mkdir()
    (folder / "cat" / "notes.txt").write_text("about cats")
    dataset = load(folder, report=lines.append)
    assert (dataset.name, dataset.class_names) == ("pets/", ("cat", "dog"))
    assert dataset.image_shape == (8, 12, 1)  # all images have one size, and are grey
    assert (len(dataset.train), len(dataset.test)) == (18, 2)
    shades = dataset.train.images[:, 0, 0, 0]
    np.testing.assert_array_equal(shades >= 200, dataset.train.labels == 1)
    assert lines[0].endswith(
        "1 files are no PNG, JPEG, BMP, GIF, WEBP, TIFF or PPM files and are left out"
    )
    assert "reading 20 images" in lines[1]
    lines.clear()
    again = load(folder, report=lines.append)  # from the cache
    np.testing.assert_array_equal(again.train.images, dataset.train.images)
    assert len(lines) == 1
    picture(folder / "dog" / "new.png", (20, 20), "RGB")
    other = load(folder)  # several sizes, one image in colour
    assert other.image_shape == (28, 28, 3)


def test_a_folder_with_a_test_split(folder: Path) -> None:
    folder.rename(folder.parent / "train")
    whole = folder.parent / "all"
    whole.mkdir()
    (folder.parent / "train").rename(whole / "train")
    picture(whole / "test" / "dog" / "1.png", shade=250)
    dataset = load(whole)
    assert (len(dataset.train), dataset.test.labels.tolist()) == (20, [1])
    picture(whole / "test" / "fox" / "1.png")
    with pytest.raises(DataError, match=r"test/fox is a class of the test images alone: give"):
        load(whole)


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="empty holds no folders with images: give it one for"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "cat" / "x.txt").write_text("text")
    with pytest.raises(DataError, match=r"empty holds no PNG, .* files: give it images"):
        load(tmp_path / "empty")
    image = folder / "cat" / "0.png"
    content = image.read_bytes()
    image.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"cat/0.png cannot be read as an image"):
        load(folder)
    image.write_bytes(b"text")
    with pytest.raises(DataError, match=r"cat/0.png cannot be read as an image: replace it"):
        load(folder)


def test_images_that_are_large_are_scaled(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        picture(path, (130, 130), "RGB")
    assert load(folder).image_shape == (28, 28, 3)
