"""The command `jaxcnn landscape`: the loss around a trained network."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro import conf

from jaxcnn.cli.console import make_echo
from jaxcnn.cli.trained import TrainedOnFlags
from jaxcnn.errors import OUT_REMEDY, as_path, writing

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class LandscapeCommand(TrainedOnFlags):
    """Draws the loss around a trained network: curvature, gradient noise, and slices."""

    checkpoint: Annotated[str, conf.arg(metavar="latest|best|STEP|all")] = "latest"
    """Which one to take. All draws curvature and noise over the steps, and the slices through the
    last one."""
    images: int = 0
    """Training images that the loss is the mean of, in evaluation mode; a multiple of 100. 0 for
    1,000, or as many as there are."""
    eigenvalues: int = 5
    """How many of the Hessian's largest eigenvalues."""
    out: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: the run's workdir)")
    ] = ""
    """Where landscape.json and the figures go."""

    def run(self, console: "Console") -> None:
        """Prints the measurements and the paths of the files."""
        from jaxcnn.landscape import survey
        from jaxcnn.train.trained import load_all_trained

        echo = make_echo(console)
        survey.check_count(self.eigenvalues)
        if self.checkpoint == "all":
            everything = load_all_trained(self.workdir, report=echo)
            networks = everything
        else:
            networks = [self.load(echo)]
            everything = load_all_trained(self.workdir)  # damaged ones were named already
        last = networks[-1]
        before = [one for one in everything if one.checkpoint.step < last.checkpoint.step]
        dataset = self.load_data(last, echo)
        folder = as_path(self.out or self.workdir)
        with writing(folder, OUT_REMEDY):  # before the work, which takes a while
            folder.mkdir(parents=True, exist_ok=True)
        surveyed = survey.make_survey(
            networks,
            dataset.train,
            before=before[-1] if before else None,
            images=self.images or min(1000, len(dataset.train) // 100 * 100),
            eigenvalues=self.eigenvalues,
            report=echo,
        )
        echo(f"slices through step {surveyed.slice_step:,}, along {surveyed.direction}")
        for path in survey.write_survey(surveyed, folder):
            echo(str(path))
