"""The share of photographs of digits that are prepared correctly and then classified correctly.

    python experiments/mnist.py --workdir runs/digits
    python benchmarks/photographs.py runs/digits --out FILE.json

The photographs are made here, so that all is known about them: handwriting-like digits, with pens
of three widths on paper from dark to light, plain, ruled or squared, with or without a margin that
is no paper, in even light, beside a lamp or with darker corners, turned by up to 10 degrees, with
noise, out of focus, and as JPEG files. Each comes a second time with light and dark exchanged, as
chalk on a board. Polarity is correct if the digit ends as light on dark.
"""

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from jaxcnn.data.digits import pen_paths
from jaxcnn.deploy import own_images
from jaxcnn.devices import environment
from jaxcnn.errors import UserError
from jaxcnn.train.trained import load_trained

# Of the height of the digit: a ballpoint, a fountain pen, a felt pen.
PENS = {"thin": 0.05, "medium": 0.09, "thick": 0.15}
PAPERS = {"dark": (70, 120), "grey": (120, 190), "light": (190, 255)}
LIGHTS = ("even", "corners", "lamp")
GROUNDS = ("plain", "ruled", "squared")
MARGINS = ("none", "frame", "clear", "line")
_FINE = 2  # drawn twice as large, for soft edges


def photograph(
    rng: np.random.Generator, label: int, inverted: bool
) -> tuple[Image.Image, dict[str, str]]:
    """Makes one.

    Returns:
        image: 8 bits, grey, or with transparency.
        traits: what it shows, by the names of the lists above.
    """
    traits = {
        "pen": str(rng.choice(list(PENS))),
        "paper": str(rng.choice(list(PAPERS))),
        "light": str(rng.choice(LIGHTS)),
        "ground": str(rng.choice(GROUNDS)),
        "margin": str(rng.choice(MARGINS, p=(0.55, 0.15, 0.15, 0.15))),
        "polarity": "light on dark" if inverted else "dark on light",
    }
    width, height = (int(side) for side in rng.integers(240, 800, 2))
    paper = rng.uniform(*PAPERS[traits["paper"]])
    page = _page(rng, (width, height), paper, traits["ground"])
    ink, size = _ink(rng, label, (width, height), PENS[traits["pen"]])
    darkness = rng.uniform(0.65, 0.95)
    page = page * (1 - ink * darkness)
    page *= _light(rng, (width, height), traits["light"])
    page += rng.normal(0, rng.uniform(0, 5), page.shape)
    image = Image.fromarray(page.clip(0, 255).round().astype(np.uint8))
    # A line of the thin pen in a small image must not vanish.
    blur = rng.uniform(0, min(2.0, 0.25 * PENS[traits["pen"]] * size))
    image = image.filter(ImageFilter.GaussianBlur(blur))
    image = _margin(rng, image, traits["margin"])
    if inverted:
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        image = image.convert("L").point(lambda level: 255 - level)
        if alpha:
            image.putalpha(alpha)
            image = image.convert("RGBA")
    return image, traits


def _page(rng: np.random.Generator, size: tuple[int, int], paper: float, ground: str) -> np.ndarray:
    """Paper, float64[H, W], with lines a tenth to a third darker."""
    image = Image.new("F", size, paper)
    draw = ImageDraw.Draw(image)
    distance = rng.uniform(0.06, 0.15) * max(size)
    line = {"fill": paper * rng.uniform(0.67, 0.9), "width": int(rng.integers(1, 4))}
    if ground != "plain":
        for y in np.arange(rng.uniform(0, distance), size[1], distance):
            draw.line([(0, y), (size[0], y)], **line)
    if ground == "squared":
        for x in np.arange(rng.uniform(0, distance), size[0], distance):
            draw.line([(x, 0), (x, size[1])], **line)
    return np.asarray(image, np.float64)


def _ink(
    rng: np.random.Generator, label: int, size: tuple[int, int], pen: float
) -> tuple[np.ndarray, float]:
    """Returns where the ink is, float64[H, W] in 0..1, and the height of the digit in pixels."""
    paths, drawn = pen_paths(rng, np.array([label], np.int32), spread=0.4)
    turn = np.deg2rad(rng.uniform(-10, 10))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    path = paths[0] @ rotation.T
    low, high = path.min(0), path.max(0)
    # The pen's width lies half outside of the path.
    room = 0.9 * np.array(size)
    largest = (room / (high - low + pen * (high - low).max())).min()
    scale = rng.uniform(0.3, 1.0) * largest
    span, height = (high - low) * scale, (high - low).max() * scale
    space = np.array(size) - span - pen * height
    start = pen * height / 2 + rng.uniform(0.05, 0.95, 2) * space
    places = ((path - low) * scale + start) * _FINE
    mask = Image.new("L", (size[0] * _FINE, size[1] * _FINE), 0)
    draw = ImageDraw.Draw(mask)
    radius = pen * height / 2 * _FINE
    for begin, end, down in zip(places[:-1], places[1:], drawn[0], strict=True):
        if down:
            draw.line([tuple(begin), tuple(end)], fill=255, width=max(1, round(2 * radius)))
        for x, y in (begin, end):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(mask.resize(size, Image.Resampling.BOX), np.float64) / 255, height


def _light(rng: np.random.Generator, size: tuple[int, int], kind: str) -> np.ndarray:
    """How much light there is, float64[H, W] in 0.7..1."""
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    loss = rng.uniform(0.05, 0.3)
    if kind == "corners":
        return 1 - loss * (x**2 + y**2) / 2
    if kind == "lamp":  # falls with the distance from a lamp beside the image
        angle = rng.uniform(0, 2 * np.pi)
        away = np.hypot(x - 1.2 * np.cos(angle), y - 1.2 * np.sin(angle))
        away = (away - away.min()) / np.ptp(away)
        return 1 - loss * away ** rng.uniform(0.7, 2.0)
    return np.ones_like(x)


def _margin(rng: np.random.Generator, image: Image.Image, kind: str) -> Image.Image:
    """Puts what is no paper around it."""
    width, height = image.size
    thick = int(rng.uniform(0.02, 0.15) * min(image.size))
    if kind in ("frame", "clear"):
        whole = Image.new("LA", (width + 2 * thick, height + 2 * thick), (0, 255))
        if kind == "clear":
            whole = Image.new("LA", whole.size, (int(rng.choice([0, 255])), 0))
        whole.paste(image.convert("LA"), (thick, thick))
        return whole.convert("L" if kind == "frame" else "RGBA")
    if kind == "line":  # at one side or two that meet
        draw = ImageDraw.Draw(image)
        level, line = int(rng.integers(0, 60)), int(rng.integers(1, 6))
        draw.rectangle((0, 0, width, line - 1), fill=level)
        if rng.random() < 0.5:
            draw.rectangle((0, 0, line - 1, height), fill=level)
    return image


def photographs(count: int, seed: int) -> Iterator[tuple[bytes, int, dict[str, str]]]:
    """Yields files, their labels and what they show: each digit as often, each polarity as well."""
    for index in range(count):
        # The same photograph for both polarities.
        rng = np.random.default_rng([seed, index // 2])
        label, inverted = index // 2 % 10, bool(index % 2)
        image, traits = photograph(rng, label, inverted)
        file = io.BytesIO()
        if image.mode == "RGBA":
            image.save(file, "PNG")
        else:
            image.save(file, "JPEG", quality=int(rng.integers(40, 96)))
        yield file.getvalue(), label, {"digit": str(label), **traits}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the shares of correct polarities and predictions, of all images and by trait."""

    def shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "photographs": len(rows),
            **{
                name: float(np.mean([row[name] for row in rows]))
                for name in ("polarity_right", "class_right")
            },
        }

    kinds = [name for name in rows[0] if not name.endswith("right")]
    return {
        **shares(rows),
        "by": {
            kind: {
                value: shares([row for row in rows if row[kind] == value])
                for value in sorted({row[kind] for row in rows})
            }
            for kind in kinds
        },
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("workdir", help="a run of the MNIST network")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="writes what went wrong there")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    found = parser.parse_args()
    network = load_trained(found.workdir)
    rows, images = [], []
    files = list(photographs(found.count, found.seed))
    for content, _, traits in files:
        try:
            prepared = own_images.prepare_image(io.BytesIO(content), "mnist")
            images.append(prepared.image)
            inverted = "dark on light, so inverted" in prepared.steps
        except UserError:
            images.append(np.zeros((28, 28, 1), np.uint8))
            inverted = traits["polarity"] != "dark on light"
        rows.append(
            {**traits, "polarity_right": inverted == (traits["polarity"] == "dark on light")}
        )
    named = network.probabilities(np.stack(images)).argmax(-1)
    for index, (row, (content, label, _)) in enumerate(zip(rows, files, strict=True)):
        row["class_right"] = bool(named[index] == label)
        if found.keep and not (row["class_right"] and row["polarity_right"]):
            found.keep.mkdir(parents=True, exist_ok=True)
            (found.keep / f"{index:05}-{label}-as-{named[index]}").write_bytes(content)
            Image.fromarray(images[index][..., 0]).save(found.keep / f"{index:05}-prepared.png")
    content = summary(rows)
    for kind, values in {**content["by"], "all": {"": content}}.items():
        for value, shares in values.items():
            print(
                f"{kind:9} {value:14} {shares['photographs']:5}",
                f"polarity {shares['polarity_right']:7.2%}",
                f"class {shares['class_right']:7.2%}",
            )
    if found.out:
        content |= {
            "seed": found.seed,
            "checkpoint": str(network.checkpoint.step),
            "versions": environment.versions(),
            "device": environment.device(),
        }
        found.out.parent.mkdir(parents=True, exist_ok=True)
        found.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
