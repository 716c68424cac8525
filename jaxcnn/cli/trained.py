"""What the commands with a trained network share: its flags, and the data it was trained on."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro import conf

from jaxcnn.cli.console import Echo
from jaxcnn.cli.flags import DataFlags
from jaxcnn.errors import UserError
from jaxcnn.recipes.problems import is_own_data

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxcnn.data.dataset import Dataset
    from jaxcnn.train.trained import Trained


@dataclass(frozen=True, kw_only=True)
class TrainedFlags:
    """Which trained network a command takes."""

    workdir: Annotated[str, conf.Positional, conf.arg(metavar="WORKDIR")]
    """Of the run that trained the network."""
    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP")] = "latest"
    """Which one to take. The best one is chosen by the test images, so its score is biased."""

    def load(self, echo: Echo, own: "nn.Module | None" = None) -> "Trained":
        """Loads the network; `echo` prints which checkpoints are damaged.

        Args:
            echo: prints a line.
            own: the network, if it is not the recipe's.

        Raises:
            UserError: there is no such checkpoint, or it is damaged.
        """
        from jaxcnn.train.trained import load_trained

        return load_trained(self.workdir, self.checkpoint, report=echo, model=own)


@dataclass(frozen=True, kw_only=True)
class TrainedOnFlags(TrainedFlags):
    """Which trained network a command takes, and the data set that it was trained on."""

    source: Annotated[str, conf.arg(name="data", metavar="PATH", help_behavior_hint="")] = ""
    """The data set, if the network was trained on your own, or on another that TFDS prepared."""
    data: DataFlags = field(default_factory=DataFlags)

    def load_data(self, network: "Trained", echo: Echo) -> "Dataset":
        """Loads the data set that a network was trained on, and warns if the data differs.

        Args:
            network: the trained network.
            echo: prints a line, see `jaxcnn.cli.console.make_echo`.

        Raises:
            UserError: the data is not available.
        """
        from jaxcnn.data.tfds import VERSIONS
        from jaxcnn.train.identity import checksum

        name = str(network.run["dataset"])
        if not self.source and is_own_data(name) and name not in VERSIONS:
            raise UserError(f"the network was trained on {name}: give its path by --data")
        source = self.source or (name if name in VERSIONS else "synthetic")
        dataset = self.data.load(network.recipe.network, source, echo)
        echo(f"checkpoint: {network.checkpoint.folder}")
        if checksum(dataset.train, dataset.test) != network.run["dataset_checksum"]:
            echo(f"the data is not that on which the network was trained ({name})", "bold red")
        return dataset
