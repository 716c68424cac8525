"""The page of a trained network: its flags, and the command `jaxcnn demo`."""

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro import conf

from jaxcnn.cli.console import Echo, make_echo
from jaxcnn.cli.flags import DataFlags
from jaxcnn.cli.trained import TrainedOnFlags
from jaxcnn.errors import UserError, as_path

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.data.dataset import Dataset
    from jaxcnn.train.trained import Trained

_NAME = "demo.html"


@dataclass(frozen=True, kw_only=True)
class PageFlags(TrainedOnFlags):
    """What a page of a trained network contains."""

    training_set: bool = True
    """Embed 5,000 training images in a page, on which the network can be trained in the browser:
    1 MB for MNIST, 2 MB for CIFAR-10."""

    def write_page(self, path: Path, echo: Echo) -> None:
        """Writes the page and prints its path.

        Args:
            path: of the file.
            echo: prints a line, see `jaxcnn.cli.console.make_echo`.

        Raises:
            UserError: the network cannot be loaded, or the file cannot be written.
        """
        from jaxcnn.deploy import page

        network = self.load(echo)
        dataset = self._find_data(network, echo)
        page.write_page(network, dataset, path, trainable=self.training_set)
        size = path.stat().st_size / 1e6
        echo(f"{path}: {size:.1f} MB, a page that needs no server and no network", "bold")

    def _find_data(self, network: "Trained", echo: Echo) -> "Dataset | None":
        """Returns the data set, or None where none is named and the run's own cannot be loaded."""
        try:
            return self.load_data(network, echo)
        except UserError as error:
            if self.source or self.data != DataFlags():
                raise
            echo(f"the page has no images of the data set: {error}")
            return None


@dataclass(frozen=True, kw_only=True)
class DemoCommand(PageFlags):
    """Writes a page on which to draw a digit, or show a photograph, and opens it in the browser.

    The network runs, explains itself and trains in the page.
    """

    out: Annotated[
        str, conf.arg(metavar="FILE", help_behavior_hint=f"(default: {_NAME} in the run's workdir)")
    ] = ""
    """Where the page goes, with the ending .html. An existing file is replaced."""
    open: bool = True
    """Open the page in the browser."""

    def run(self, console: "Console") -> None:
        """Writes the page and opens it."""
        from jaxcnn.deploy import page

        path = page.check_page(self.out) if self.out else as_path(self.workdir) / _NAME
        self.write_page(path, make_echo(console))
        if self.open:
            webbrowser.open(path.resolve().as_uri())
