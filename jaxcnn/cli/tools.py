"""The command `jaxcnn`: what can be done with a trained network, and before one is trained.

Each command is a dataclass of its flags; what it needs is imported when it runs, so that `--help`
and mistakes answer at once.
"""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import tyro
from tyro import conf

from jaxcnn.cli import arena
from jaxcnn.cli.console import describe_score, ending_on_errors, make_echo
from jaxcnn.cli.find_rate import FindRateCommand
from jaxcnn.cli.flags import DataFlags, NetworkFlags
from jaxcnn.cli.landscape import LandscapeCommand
from jaxcnn.cli.page import DemoCommand, PageFlags
from jaxcnn.cli.trained import TrainedFlags, TrainedOnFlags
from jaxcnn.errors import WORKDIR_REMEDY, UserError, as_path, writing

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.deploy.own_images import PreparedImage


class Command(Protocol):
    """A command with its flags."""

    def run(self, console: "Console") -> None:
        """Does the work; results are printed on the console."""
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(TrainedOnFlags):
    """Scores a trained network on the whole test set."""

    tta: bool = False
    """Test-time augmentation: also score the average prediction for several views of each image."""
    network: NetworkFlags = field(default_factory=NetworkFlags)

    def run(self, console: "Console") -> None:
        """Prints the score."""
        from jaxcnn.train.evaluate import evaluate

        echo = make_echo(console)
        network = self.load(echo, self.network.make())
        dataset = self.load_data(network, echo)
        for tta in (False, True) if self.tta else (False,):
            scores = evaluate(
                network.recipe, network.variables, dataset.test, model=network.model, tta=tta
            )
            correct, total, loss = scores
            echo(f"{describe_score(dataset, correct, total, tta=tta)}, loss {loss:.4f}", "bold")
        if self.checkpoint == "best":
            echo("this checkpoint was chosen by the same test images, so its score is biased")


@dataclass(frozen=True, kw_only=True)
class ReportCommand(TrainedOnFlags):
    """Draws the figures of a run anew, and the page that shows them."""

    out: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: the run's workdir)")
    ] = ""
    """Where the page and its figures go."""

    def run(self, console: "Console") -> None:
        """Writes the page and prints its path."""
        from jaxcnn.report.page import write_report
        from jaxcnn.train import records

        echo = make_echo(console)
        network = self.load(echo)
        dataset = self.load_data(network, echo)
        result = records.read_result(as_path(self.workdir))
        folder = as_path(self.out or self.workdir)
        echo(f"report: {write_report(network, dataset, folder, result)}")


@dataclass(frozen=True, kw_only=True)
class PredictCommand(TrainedFlags):
    """Classifies your own images, and shows how they were prepared."""

    images: Annotated[
        tuple[str, ...],
        conf.Positional,
        conf.arg(metavar="IMAGE ...", help_behavior_hint="(at least one)"),
    ]
    """PNG, JPEG, BMP, GIF, WebP, TIFF or PPM files of any size, colour or grey; digits dark on
    light or light on dark."""
    prepared: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: they are not kept)")
    ] = ""
    """A folder for the prepared images as PNG files."""

    def run(self, console: "Console") -> None:
        """Prints each prepared image and the three most probable classes."""
        import numpy as np

        from jaxcnn.deploy import own_images

        if not self.images:
            raise UserError("jaxcnn predict takes the path of at least one image")
        echo = make_echo(console)
        network = self.load(echo)
        names = network.class_names
        images = [own_images.prepare_for(network, path) for path in self.images]
        rows = network.probabilities(np.stack([prepared.image for prepared in images]))
        for path, prepared, row in zip(self.images, images, rows, strict=True):
            _show(prepared, console)
            echo(f"prepared: {'; '.join(prepared.steps)}")
            first, *others = np.argsort(-row)[:3]
            rest = ", ".join(f"{names[index]} {row[index]:.1%}" for index in others)
            echo(f"{path}: {names[first]} ({row[first]:.1%}; then {rest})", "bold")
        if self.prepared:
            _keep(as_path(self.prepared), self.images, images)
            echo(f"prepared images: {self.prepared}")


@dataclass(frozen=True, kw_only=True)
class ExportCommand(PageFlags):
    """Writes a trained network as a file that needs no jaxcnn, and a model card beside it."""

    format: Literal["stablehlo", "safetensors", "onnx", "html"]
    """StableHLO for jax, safetensors for PyTorch, ONNX, or a page as of jaxcnn demo, which needs no
    card. The flags about data are for the page."""
    out: Annotated[str, conf.arg(metavar="FILE")]
    """Where it goes, with the format as its ending; FILE.md is the card, with the code to load it.
    Existing files are replaced."""

    def run(self, console: "Console") -> None:
        """Writes the file, and its card, and prints their paths."""
        from jaxcnn.deploy import export, page

        echo = make_echo(console)
        if self.format == "html":
            self.write_page(page.check_page(self.out), echo)
            return
        export.check_export(self.format, self.out)  # before the checkpoint is read
        network = self.load(echo)
        echo(f"checkpoint: {network.checkpoint.folder}")
        best = self.checkpoint == "best"
        path, card = export.write_export(network, self.format, self.out, chosen_by_test=best)
        size = path.stat().st_size / 2**20
        echo(f"{path}: {size:.1f} MiB, {export.describe_export(self.format)}", "bold")
        echo(f"{card}: the model card, with the code that loads it")


@dataclass(frozen=True)
class DoctorCommand:
    """Checks that this machine, its jax and the folders work as they should.

    Status 1 if anything does not.
    """

    data: DataFlags = field(default_factory=DataFlags)

    def run(self, console: "Console") -> None:
        """Prints the findings."""
        from jaxcnn.devices import environment
        from jaxcnn.train import doctor

        echo = make_echo(console)
        echo(environment.machine())
        findings = []
        for finding in doctor.examine(self.data.data_dir, self.data.archive_dir):
            findings.append(finding)
            verdict, style = ("sound", None) if finding.sound else ("NOT SOUND", "bold red")
            echo(f"{verdict:10}{finding.what}: {finding.seen}", style)
        doctor.record(findings)
        if unsound := sum(not finding.sound for finding in findings):
            echo(f"{unsound} of {len(findings)} are not sound")
            raise SystemExit(1)
        echo(f"all {len(findings)} are sound")


_COMMANDS: dict[str, Callable[..., Command]] = {
    "evaluate": EvaluateCommand,
    "report": ReportCommand,
    "landscape": LandscapeCommand,
    "predict": PredictCommand,
    "export": ExportCommand,
    "demo": DemoCommand,
    "find-rate": FindRateCommand,
    "doctor": DoctorCommand,
    "arena": arena.ArenaCommand,
    "arena add": arena.ArenaAddCommand,
    "arena merge": arena.ArenaMergeCommand,
    "arena verify": arena.ArenaVerifyCommand,
}


def parse_command(argv: Sequence[str] | None = None) -> Command:
    """Parses a command and its flags.

    Args:
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: with status 2 and tyro's message on standard error: a flag is unknown, missing
            or its value of another type; with status 0 after --help.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["arena"] and words[1:2] and words[1] in arena.COMMANDS:
        words[:2] = [" ".join(words[:2])]
    return tyro.extras.subcommand_cli_from_dict(
        _COMMANDS,
        prog="jaxcnn",
        description="Looks at trained networks and uses them. Training is an experiment, "
        "python experiments/mnist.py or cifar10.py.",
        args=words,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process on an error.

    Args:
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: see `parse_command` and `jaxcnn.cli.console.ending_on_errors`; with status 1 if
            the doctor has found something.
    """
    with ending_on_errors("jaxcnn"):
        command = parse_command(argv)
        from rich.console import Console

        command.run(Console(highlight=False))


def _show(prepared: "PreparedImage", console: "Console") -> None:
    """Prints an image, two pixels per character cell where the console has colours."""
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


def _keep(folder: Path, paths: Sequence[str], images: "Sequence[PreparedImage]") -> None:
    """Writes prepared images as PNG files."""
    from PIL import Image

    from jaxcnn.storage import atomic

    remedy = WORKDIR_REMEDY.replace("--workdir", "--prepared")
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
    for number, (path, prepared) in enumerate(zip(paths, images, strict=True), start=1):
        content = io.BytesIO()
        Image.fromarray(prepared.image.squeeze()).save(content, "png")
        name = f"{number:03d}-{Path(path).stem}.png"
        atomic.write(folder / name, content.getvalue(), remedy)
