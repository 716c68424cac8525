"""What surrounds the training of an experiment: devices, folders, signals, records, the report."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from rich.console import Console

from jaxcnn.cli import interrupts, progress, screen
from jaxcnn.cli.console import Echo, describe_score, echo_source_files, make_echo
from jaxcnn.cli.flags import TrainFlags
from jaxcnn.cli.network import check_network
from jaxcnn.data import own_data
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import environment, processes
from jaxcnn.devices.mesh import describe_mesh
from jaxcnn.errors import StoppedError, UserError
from jaxcnn.networks.inspect import count_parameters, variable_shapes
from jaxcnn.optim.frozen import frozen_paths, trainable
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint, compilation
from jaxcnn.train import doctor, evaluate, losses, records, setup, start, trained
from jaxcnn.train.feed import choose_feed
from jaxcnn.train.result import Observer, Result


def open_session(flags: TrainFlags, recipe: Recipe) -> "Session":
    """Prepares everything that can be checked before the data is loaded.

    Args:
        flags: of the experiment.
        recipe: the hyperparameters.

    Raises:
        UserError: a value or the workdir cannot be used, or other processes cannot be reached.
    """
    mesh = flags.devices.join(("data",), flags.checkpoints.workdir)
    console = Console(highlight=False)
    echo = make_echo(console)
    workdir = flags.checkpoints.folder(recipe.network)
    checkpoints = flags.checkpoints.policy(workdir / records.CHECKPOINTS, echo)
    processes.on_main(records.check_workdir)(workdir, flags.checkpoints.resume, recipe.epochs)
    loss = losses.find_loss(flags.loss) if flags.loss else None
    setup.check_recipe(recipe)
    model = flags.network.make()
    echo_source_files([recipe.optimizer], echo)
    if loss is not None:
        module = sys.modules[flags.loss.split(":")[0]]
        echo(f"loss: {flags.loss} of {getattr(module, '__file__', module.__name__)}")
    if flags.devices.compilation_cache:
        compilation.enable_cache(echo)
    doctor.warn([recipe.optimizer], echo)
    observers: list[Observer] = [records.Records(workdir), progress.TrainProgress(console)]
    return Session(flags, recipe, model, loss, mesh, workdir, checkpoints, observers, echo)


@dataclass
class Session:
    """A run from its flags to the files that it leaves, see `open_session`.

    Attributes:
        flags: of the experiment.
        recipe: the hyperparameters; `load_data` adds the normalization of another data set.
        model: the network that the flags name, or None for the recipe's.
        loss: the user-defined one of --loss, or None.
        mesh: of devices, or None for jax's default device.
        workdir: where results go.
        checkpoints: where `fit` saves and whether it resumes.
        observers: the records in the workdir and the progress bar.
        echo: prints a line, see `jaxcnn.cli.console.make_echo`.
        start: the variables that training begins with, or None for random ones.
    """

    flags: TrainFlags
    recipe: Recipe
    model: nn.Module | None
    loss: losses.Loss | None
    mesh: Mesh | None
    workdir: Path
    checkpoints: checkpoint.Policy
    observers: list[Observer]
    echo: Echo
    start: Any = None

    def load_data(self) -> Dataset:
        """Loads the data set and prints what will be trained on what.

        Raises:
            UserError: the data is not available, or processes have different flags.
        """
        flags = self.flags
        dataset = flags.data.load(self.recipe.network, flags.source, self.echo)
        if not flags.recipe.is_file:
            self.recipe = own_data.normalized(self.recipe, dataset)
        recipe = self.recipe
        if self.model is not None:
            check_network(flags.network.name, self.model, recipe, dataset)
        if flags.start:
            self._load_start(dataset)
        if flags.freeze:
            self._check_freeze(dataset)
        same: dict[str, Any] = {"seed": flags.seed, "feed": flags.feed, "dataset": dataset.name}
        same |= {"from": flags.start, "network": [flags.network.name, *flags.network.args]}
        same |= {"checkpoint_every": flags.checkpoints.every, "mesh": self._mesh}
        same |= {"loss": flags.loss, "log_every": flags.log_every, "freeze": flags.freeze}
        processes.check_same({**recipe.asdict(), **same})
        self.echo(
            f"data: {dataset.name} {dataset.version}, {len(dataset.train):,} training and "
            f"{len(dataset.test):,} test images"
            + (f" of {dataset.classes} classes" if dataset.is_own else "")
        )
        self.echo(
            f"recipe: {recipe.name}, {recipe.epochs} epochs at batch {recipe.batch_size} with "
            f"{recipe.optimizer} {recipe.learning_rate:g}, seed {flags.seed}, on "
            + ", ".join(filter(None, [environment.device(), self._mesh]))
        )
        return dataset

    def _load_start(self, dataset: Dataset) -> None:
        """Loads the weights of --from, and prints which arrays do not fit."""
        source = self.flags.start
        try:
            self.start = start.load_start(source, dataset, self.model)
            model = setup.checked_model(self.recipe, self.model, dataset)
            _, anew = start.checked_start(self.start, model, dataset)
        except UserError as error:
            raise UserError(f"--from {source}: {error}") from None
        ends = f"; for {dataset.classes} classes {', '.join(anew)} begin anew" if anew else ""
        self.echo(f"weights: those of {source}{ends}")

    def _check_freeze(self, dataset: Dataset) -> None:
        """Prints how much --freeze leaves as it is."""
        model = setup.checked_model(self.recipe, self.model, dataset)
        params = variable_shapes(model, dataset.image_shape)["params"]
        paths = frozen_paths(self.flags.freeze, params)
        arrays, total = len(jax.tree.leaves(params)), count_parameters(params)
        left = count_parameters(trainable(params, paths))
        parameters = f"{total - left:,} of {total:,} parameters"
        self.echo(f"frozen: {len(paths)} of {arrays} arrays, {parameters}")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[interrupts.Interrupts]:
        """Lets Ctrl-C and SIGTERM ask `fit` to save and stop.

        Yields:
            What `fit` polls.

        Raises:
            SystemExit: the run was stopped, with 128 plus the number of the signal as status.
            UserError: another process is gone.
        """
        with interrupts.watched() as interrupted, processes.noticing_losses():
            try:
                yield interrupted
            except StoppedError as error:
                # Where there are several processes, another one may have received the signal.
                number = interrupted.received or signal.SIGTERM
                advice = f"the same flags with --workdir {self.workdir} resume it"
                sys.stderr.write(processes.main_only(f"{error}; {advice}\n", ""))
                raise SystemExit(128 + number) from None

    def finish(self, result: Result, dataset: Dataset) -> None:
        """Writes the last files of a run and prints its scores, in process 0.

        Args:
            result: of `fit`.
            dataset: that it was trained on.

        Raises:
            WriteError: a file cannot be written; the same command completes the run.
        """
        processes.on_main(self._finish)(result, dataset)

    def _finish(self, result: Result, dataset: Dataset) -> None:
        """Does the work of `finish`."""
        flags, recipe, echo = self.flags, self.recipe, self.echo
        settings: dict[str, Any] = {"seed": flags.seed, "feed": choose_feed(flags.feed)}
        if self._mesh:
            settings["mesh"] = self._mesh
        if flags.loss:
            settings["loss"] = flags.loss
        if flags.freeze:
            settings["freeze"] = flags.freeze
        settings["command"] = shlex.join([Path(sys.executable).name, *sys.argv])
        scores = [describe_score(dataset, result.test_correct, result.test_total)]
        if flags.tta:
            variables = result.state.eval_variables
            model = self.model or setup.make_model(recipe, dataset.classes, dataset.image_shape)
            scored = evaluate.evaluate(recipe, variables, dataset.test, model=model, tta=True)
            correct, total, _ = scored
            settings |= {"tta_test_correct": correct, "tta_test_accuracy": correct / total}
            scores.append(describe_score(dataset, correct, total, tta=True))
        content = records.make_result(result, recipe, dataset, settings)
        echo(
            f"trained in {result.train_seconds:.1f} s ({result.images_per_second:,.0f} images/s), "
            f"compiled in {result.compile_seconds:.1f} s, evaluated in {result.eval_seconds:.1f} s"
        )
        for score in scores:
            echo(score, "bold")
        if not dataset.is_real:
            warning = f"{dataset.name} is synthetic: this says nothing about {recipe.network}"
            echo(f"*** {warning} ***", "bold red")
        if self.model:
            echo(f"no report for {flags.network.name}: it shows the layers of the recipe's network")
        elif flags.report != "never":
            from jaxcnn.report.page import write_report  # here: matplotlib delays the start

            network = trained.load_trained(self.workdir)
            echo(f"report: {write_report(network, dataset, self.workdir, content)}")
        if reason := screen.output_failure():
            content["screen"] = reason
        records.write_result(self.workdir, content)  # last: a run without it is resumed
        echo(f"results: {self.workdir}")

    @property
    def _mesh(self) -> str:
        """The mesh in words, "" for none."""
        return describe_mesh(self.mesh) if self.mesh else ""
