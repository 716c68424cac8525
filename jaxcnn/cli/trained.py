"""What the commands with a trained network share: its flags, and the data it was trained on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro import conf

from jaxcnn.cli.console import Echo
from jaxcnn.cli.flags import DataFlags, SourceName

if TYPE_CHECKING:
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.train.trained import Trained


@dataclass(frozen=True, kw_only=True)
class TrainedFlags:
    """Which trained network a command takes."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run that trained the network."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take. The best one is chosen by the test images, so its score is biased."""

    def load(self, echo: Echo) -> "Trained":
        """Loads the network; `echo` prints which checkpoints are damaged.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        from jaxcnn.train.trained import load_trained

        return load_trained(self.workdir, self.checkpoint, report=echo)


def load_data_of(network: "Trained", flags: DataFlags, echo: Echo) -> "Dataset":
    """Loads the data set that a network was trained on, and warns if the data differs.

    Args:
        network: the trained network.
        flags: where the data is.
        echo: prints a line, see `jaxcnn.cli.console.make_echo`.

    Raises:
        UserError: the data is not available.
    """
    from jaxcnn.train.identity import checksum

    name = str(network.run["dataset"])
    source: SourceName = "synthetic" if name.startswith("synthetic-") else "real"
    dataset = flags.load(network.recipe.network, source, echo)
    echo(f"checkpoint: {network.checkpoint.folder}")
    if checksum(dataset.train, dataset.test) != network.run["dataset_checksum"]:
        echo(f"the data is not that on which the network was trained ({name})", "bold red")
    return dataset
