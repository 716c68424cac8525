"""The command `jaxcnn`: what can be done with a trained network."""

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro import conf

from jaxcnn.cli.console import call_tyro, describe_score, ending_on_errors, say_on
from jaxcnn.cli.flags import load_dataset
from jaxcnn.errors import WORKDIR_REMEDY, UserError, as_path, writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from jaxcnn.data.dataset import Dataset
    from jaxcnn.deploy.own_images import PreparedImage
    from jaxcnn.train.trained import Trained

    Say = Callable[..., None]


@dataclass(frozen=True)
class Evaluate:
    """Scores a trained network on the whole test set."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run that trained it."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take. The best one is chosen by the test images, which flatters its score."""
    tta: bool = False
    """Test-time augmentation: also score the average answer for several views of each image."""
    data_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """Where TFDS keeps prepared data sets."""
    archive_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """A folder with the official archives, for machines without network."""


@dataclass(frozen=True)
class Report:
    """Draws the pictures of a run anew, and the page that shows them."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take."""
    out: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: the run's workdir)")
    ] = ""
    """Where the page and its pictures go."""
    data_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """Where TFDS keeps prepared data sets."""
    archive_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """A folder with the official archives, for machines without network."""


@dataclass(frozen=True)
class Predict:
    """Says what pictures of your own show, and how they were prepared."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run that trained the network."""
    pictures: Annotated[
        tuple[str, ...],
        conf.Positional,
        conf.arg(metavar="PICTURE ...", help_behavior_hint="(at least one)"),
    ]
    """PNG, JPEG, BMP, GIF, WebP, TIFF or PPM files of any size, colour or grey; digits dark on
    light or light on dark."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take."""
    prepared: Annotated[str, conf.arg(metavar="DIR")] = ""
    """A folder for the prepared pictures as PNG files."""


@dataclass(frozen=True)
class Export:
    """Writes a trained network as a file that needs no jaxcnn, and a model card beside it."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run that trained it."""
    format: Literal["stablehlo", "safetensors", "onnx"]
    """StableHLO for jax, safetensors for PyTorch, or ONNX."""
    out: Annotated[str, conf.arg(metavar="FILE")]
    """Where it goes, with the format as its ending; FILE.md is the card, with the code to load it.
    Files that are there are replaced."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take. The best one is chosen by the test images, which flatters its score."""


@dataclass(frozen=True)
class Demo:
    """Offers a page on which to draw a digit, or drop a picture, and watch the network answer."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run that trained the network."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take."""
    host: str = "127.0.0.1"
    """Where to listen. 0.0.0.0 lets in whoever reaches this machine: there is no password."""
    port: int = 0
    """Where to listen; 0 takes a free one."""


@dataclass(frozen=True)
class Doctor:
    """Examines whether this machine, the jax on it and the folders here do what they should.

    Status 1 if anything does not.
    """

    data_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """Where TFDS keeps prepared data sets."""
    archive_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """A folder with the official archives, for machines without network."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process on an error.

    Args:
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: with status 2 after a mistake of the user's, 130 after Ctrl-C, 143 after
            SIGTERM; one sentence on standard error says why. 1 if the doctor has found something.
    """
    with ending_on_errors("jaxcnn"):
        flags = call_tyro(_Command, None, sys.argv[1:] if argv is None else argv)
        # Imported here, so that --help and mistakes answer at once.
        from rich.console import Console

        console = Console(highlight=False)
        if isinstance(flags, Evaluate):
            _evaluate(flags, console)
        elif isinstance(flags, Report):
            _report(flags, console)
        elif isinstance(flags, Export):
            _export(flags, console)
        elif isinstance(flags, Demo):
            _demo(flags, console)
        elif isinstance(flags, Doctor):
            _doctor(flags, console)
        else:
            _predict(flags, console)


_Command = (
    Annotated[Evaluate, conf.subcommand("evaluate")]
    | Annotated[Report, conf.subcommand("report")]
    | Annotated[Predict, conf.subcommand("predict")]
    | Annotated[Export, conf.subcommand("export")]
    | Annotated[Demo, conf.subcommand("demo")]
    | Annotated[Doctor, conf.subcommand("doctor")]
)


def _load(flags: Evaluate | Report, say: "Say") -> "tuple[Trained, Dataset]":
    """Loads a network and the data that it was trained on, and says so if those differ."""
    from jaxcnn.train.identity import checksum
    from jaxcnn.train.trained import load_trained

    network = load_trained(flags.workdir, flags.checkpoint, report=say)
    name = str(network.run["dataset"])
    source = "synthetic" if name.startswith("synthetic-") else "real"
    dataset = load_dataset(network.recipe.network, _with_source(flags, source), say)
    say(f"checkpoint: {network.checkpoint.folder}")
    if checksum(dataset.train, dataset.test) != network.run["dataset_checksum"]:
        say(f"the data are not those that it was trained on ({name})", "bold red")
    return network, dataset


def _evaluate(flags: Evaluate, console: "Console") -> None:
    from jaxcnn.train.evaluate import evaluate

    say = say_on(console)
    network, dataset = _load(flags, say)
    for tta in (False, True) if flags.tta else (False,):
        correct, total, loss = evaluate(network.recipe, network.variables, dataset.test, tta=tta)
        score = describe_score(dataset, correct, total, tta=tta)
        say(f"{score}, loss {loss:.4f}", "bold")
    if flags.checkpoint == "best":
        say("chosen by these very test images among several, which flatters it")


def _report(flags: Report, console: "Console") -> None:
    from jaxcnn.report.page import write_report
    from jaxcnn.train import records

    say = say_on(console)
    network, dataset = _load(flags, say)
    result = records.read_result(as_path(flags.workdir))
    folder = as_path(flags.out or flags.workdir)
    say(f"report: {write_report(network, dataset, folder, result)}")


def _demo(flags: Demo, console: "Console") -> None:
    from jaxcnn.deploy import demo, server
    from jaxcnn.train.trained import load_trained

    say = say_on(console)
    network = load_trained(flags.workdir, flags.checkpoint, report=say)
    with server.Server(demo.Demo(network), flags.host, flags.port, report=say) as listening:
        say(f"{listening.url} (Ctrl-C ends it)", "bold")
        if not listening.is_local:
            say("whoever reaches this machine can open the page", "bold red")
        listening.serve_forever()


def _predict(flags: Predict, console: "Console") -> None:
    import numpy as np

    from jaxcnn.deploy import own_images
    from jaxcnn.train.trained import load_trained

    say = say_on(console)
    if not flags.pictures:
        raise UserError("jaxcnn predict takes the path of at least one picture")
    network = load_trained(flags.workdir, flags.checkpoint, report=say)
    names = network.recipe.class_names
    pictures = [own_images.prepare_image(path, network.recipe.network) for path in flags.pictures]
    rows = network.probabilities(np.stack([prepared.image for prepared in pictures]))
    for path, prepared, row in zip(flags.pictures, pictures, rows, strict=True):
        _show(prepared, console)
        say(f"prepared: {'; '.join(prepared.steps)}")
        first, *others = np.argsort(-row)[:3]
        rest = ", ".join(f"{names[index]} {row[index]:.1%}" for index in others)
        say(f"{path}: {names[first]} ({row[first]:.1%}; then {rest})", "bold")
    if flags.prepared:
        _keep(as_path(flags.prepared), flags.pictures, pictures)
        say(f"prepared pictures: {flags.prepared}")


def _export(flags: Export, console: "Console") -> None:
    from jaxcnn.deploy import export
    from jaxcnn.train.trained import load_trained

    say = say_on(console)
    export.check_export(flags.format, flags.out)  # before the checkpoint is read
    network = load_trained(flags.workdir, flags.checkpoint, report=say)
    say(f"checkpoint: {network.checkpoint.folder}")
    best = flags.checkpoint == "best"
    path, card = export.write_export(network, flags.format, flags.out, chosen_by_test=best)
    about = export.describe_export(flags.format)
    say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {about}", "bold")
    say(f"{card}: the model card, with the code that loads it")


def _doctor(flags: Doctor, console: "Console") -> None:
    from jaxcnn.devices import environment
    from jaxcnn.train import doctor

    say = say_on(console)
    say(environment.machine())
    findings = []
    for finding in doctor.examine(flags.data_dir, flags.archive_dir):
        findings.append(finding)
        style = None if finding.sound else "bold red"
        say(f"{'sound' if finding.sound else 'NOT SOUND':10}{finding.what}: {finding.seen}", style)
    doctor.record(findings)
    if unsound := sum(not finding.sound for finding in findings):
        say(f"{unsound} of {len(findings)} are not sound")
        raise SystemExit(1)
    say(f"all {len(findings)} are sound")


def _show(prepared: "PreparedImage", console: "Console") -> None:
    """Prints a picture: two pixels a character cell where there are colours."""
    from rich.text import Text

    if not (console.is_terminal and console.color_system in ("256", "truecolor")):
        for row in prepared.lines():
            console.print(row, soft_wrap=True, markup=False)
        return
    image = prepared.image.repeat(3 // prepared.image.shape[-1], axis=-1)
    for top, bottom in zip(image[::2], image[1::2], strict=True):
        line = Text()
        for upper, lower in zip(top, bottom, strict=True):
            line.append("\u2580", style=f"rgb({_rgb(upper)}) on rgb({_rgb(lower)})")
        console.print(line, soft_wrap=True)


def _rgb(pixel: Any) -> str:
    return ",".join(str(int(value)) for value in pixel)


def _keep(folder: Path, paths: Sequence[str], pictures: "Sequence[PreparedImage]") -> None:
    from PIL import Image

    from jaxcnn.storage import atomic

    remedy = WORKDIR_REMEDY.replace("--workdir", "--prepared")
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (path, prepared) in enumerate(zip(paths, pictures, strict=True), start=1):
        content = io.BytesIO()
        Image.fromarray(prepared.image.squeeze()).save(content, "png")
        name = f"{number:03d}-{Path(path).stem}.png"
        atomic.write(folder / name, content.getvalue(), remedy)


def _with_source(flags: Any, source: str) -> Any:
    """Returns what `cli.load_data` reads."""
    from types import SimpleNamespace

    return SimpleNamespace(data=source, data_dir=flags.data_dir, archive_dir=flags.archive_dir)
