"""The commands of the arena: `jaxcnn arena`, `arena add`, `arena merge` and `arena verify`."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro import conf

from jaxcnn.cli.console import echo_source_files, make_echo
from jaxcnn.cli.devices import DeviceFlags
from jaxcnn.cli.flags import DataFlags
from jaxcnn.cli.values import check_range, trust_optimizers
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes import optimizer_defaults

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.arena.description import Protocol
    from jaxcnn.arena.files import Entry
    from jaxcnn.arena.spaces import Space
    from jaxcnn.arena.track import Track
    from jaxcnn.cli.console import Echo
    from jaxcnn.data.dataset import Dataset

_ALL = "all"
COMMANDS = ("add", "merge", "verify")
"""What `jaxcnn arena` may be followed by, beside names of tracks."""


@dataclass(frozen=True, kw_only=True)
class ArenaFlags:
    """How entries are computed."""

    variants: Annotated[tuple[str, ...], conf.arg(metavar="NAME ...")] = ("standard",)
    """Of each track: standard, half-batch, large-batch, no-dropout, label-noise, initialization,
    constant-rate, augmentation; or all."""
    trials: int = 16
    """Points of the search space, each trained once."""
    seeds: int = 5
    """Runs of the best trial, and of the defaults, on all training images."""
    validation: int = 5000
    """Training images held out for the trials."""
    chunk: int = 0
    """Runs at once in one program; 0 for one on each device on CPU, elsewhere all of them."""
    workdir: Annotated[str, conf.arg(metavar="DIR")] = "runs/arena"
    """Where the entries go, each in a file. The same command continues where it was stopped."""
    data: DataFlags = field(default_factory=DataFlags)
    devices: DeviceFlags = field(default_factory=DeviceFlags)

    def check(self) -> None:
        """Refuses values that are out of range.

        Raises:
            UserError: one is.
        """
        check_range("--trials", self.trials, 1, 10_000)
        check_range("--seeds", self.seeds, 1, 10_000)
        check_range("--validation", self.validation, 1, 10**9)
        check_range("--chunk", self.chunk, 0, 10**6)

    def compute(
        self,
        tracks: Sequence[str],
        optimizers: Sequence[str],
        space: "Space | None",
        console: "Console",
    ) -> None:
        """Computes the missing entries, and prints the tables of the tracks.

        Args:
            tracks: their names.
            optimizers: their names.
            space: of a user-defined optimizer.
            console: to print on.
        """
        from jaxcnn.arena.description import Protocol
        from jaxcnn.arena.track import VARIANTS, find_track
        from jaxcnn.devices import processes
        from jaxcnn.storage import compilation
        from jaxcnn.train import doctor
        from jaxcnn.train.setup import check_recipe

        self.check()
        variants = VARIANTS if self.variants == (_ALL,) else self.variants
        _once("TRACK", tracks)
        _once("--variants", variants)
        _once("--optimizers", optimizers)
        chosen = [find_track(name, variant) for name in tracks for variant in variants]
        trust_optimizers(optimizers)
        folder = as_path(self.workdir)
        mesh = self.devices.join(("ensemble",), self.workdir)
        for name in optimizers:  # mistakes show before any run
            check_recipe(chosen[0].for_optimizer(name))
        echo = make_echo(console)
        if self.devices.compilation_cache:
            compilation.enable_cache(echo)
        echo_source_files(optimizers, echo)
        doctor.warn(optimizers, echo)
        loaded = load_tracks(chosen, self.data, echo)
        protocol = Protocol(self.trials, self.seeds, self.validation)
        with processes.noticing_losses():
            self._compute(loaded, optimizers, space, protocol, mesh, console)
        processes.on_main(show)(folder, console, [track.title for track in chosen])

    def _compute(
        self,
        loaded: "list[tuple[Track, Dataset]]",
        optimizers: Sequence[str],
        space: "Space | None",
        protocol: "Protocol",
        mesh: object,
        console: "Console",
    ) -> None:
        """Computes the entries, track by track."""
        from jaxcnn.arena.entry import count_images, run_entry
        from jaxcnn.arena.spaces import find_space
        from jaxcnn.cli.progress import StudyProgress
        from jaxcnn.devices import processes
        from jaxcnn.study.study import StudyObserver

        observer = processes.main_only(StudyProgress(console, "arena"), None) or StudyObserver()
        images = sum(count_images(*one, protocol) for one in loaded) * len(optimizers)
        observer.start(0, images, 0)
        try:
            for track, dataset in loaded:
                for name in optimizers:
                    run_entry(
                        track,
                        name,
                        space or find_space(track.for_optimizer(name)),
                        dataset,
                        as_path(self.workdir) / track.title,
                        protocol=protocol,
                        chunk=self.chunk,
                        mesh=mesh,  # type: ignore[arg-type]
                        observer=observer,
                    )
        finally:
            observer.stop()


@dataclass(frozen=True, kw_only=True)
class ArenaCommand(ArenaFlags):
    """Compares optimizers, all tuned alike. Also: arena add, merge, verify.

    The protocol is in docs/arena.md.
    """

    tracks: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="TRACK ...")] = (
        "mnist-sprint",
    )
    """mnist-sprint, mnist, cifar10-sprint, cifar10, fashion_mnist-sprint, fashion_mnist, and the
    synthetic-mnist-sprint, synthetic-mnist, synthetic-cifar10-sprint and synthetic-cifar10."""
    optimizers: Annotated[tuple[str, ...], conf.arg(metavar="NAME ...")] = (_ALL,)
    """Any of optax and optax.contrib; or all of these. Also rollfast:kron and rollfast:prism, with
    pip install 'jaxcnn[arena]'."""

    def run(self, console: "Console") -> None:
        """Computes the missing entries."""
        from jaxcnn.arena.spaces import catalogued, check_packaged

        names = tuple(catalogued()) if self.optimizers == (_ALL,) else self.optimizers
        for name in names:
            if optimizer_defaults.is_own(name):
                check_packaged(name)
            try:
                optimizer_defaults.get(name)
            except ValueError as error:
                raise UserError(f"--optimizers: {error}") from None
        self.compute(self.tracks, names, None, console)


@dataclass(frozen=True, kw_only=True)
class ArenaAddCommand(ArenaFlags):
    """Computes the entry of an optimizer of your own."""

    optimizer: Annotated[str, conf.Positional, conf.arg(metavar="MODULE:FACTORY")]
    """A function of yours that returns an optax.GradientTransformation."""
    space: Annotated[str, conf.arg(metavar="FILE.toml")]
    """Its search space, see docs/arena.md."""
    tracks: Annotated[tuple[str, ...], conf.arg(metavar="TRACK ...")] = ("mnist-sprint",)
    """As of jaxcnn arena."""

    def run(self, console: "Console") -> None:
        """Computes the missing entries."""
        from jaxcnn.arena.spaces import load_space

        if not optimizer_defaults.is_own(self.optimizer):
            raise UserError(f"jaxcnn arena add takes module:factory, got {self.optimizer!r}")
        space = load_space(as_path(self.space))
        self.compute(self.tracks, (self.optimizer,), space, console)


@dataclass(frozen=True, kw_only=True)
class ArenaMergeCommand:
    """Joins the entries of several workdirs in one."""

    folders: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="DIR ...")]
    """Workdirs of jaxcnn arena. Nothing is written there."""
    workdir: Annotated[str, conf.arg(metavar="DIR")] = "runs/arena"
    """Where the joined entries go, beside those that it holds."""

    def run(self, console: "Console") -> None:
        """Writes the entries, and prints the tables."""
        from jaxcnn.arena.merge import merge

        if not self.folders:
            raise UserError("jaxcnn arena merge takes the workdirs to join")
        out = as_path(self.workdir)
        entries = merge([as_path(name) for name in self.folders], out)
        show(out, console, dict.fromkeys(path.parent.name for path in entries))


@dataclass(frozen=True, kw_only=True)
class ArenaVerifyCommand:
    """Repeats a sample of the runs of entries. Status 1 if one gives another result."""

    files: Annotated[tuple[str, ...], conf.Positional, conf.arg(metavar="FILE ...")]
    """Files of entries, as runs/arena/mnist-sprint/adamw.json."""
    runs: int = 3
    """Number of runs of each entry, chosen at random."""
    seed: int = 0
    """Of the choice."""
    optimizer: Annotated[
        str, conf.arg(metavar="MODULE:FACTORY", help_behavior_hint="(default: none)")
    ] = ""
    """An optimizer of your own that the entries are of: its code is run only if you name it."""
    data: DataFlags = field(default_factory=DataFlags)
    devices: DeviceFlags = field(default_factory=DeviceFlags)

    _WORDS: ClassVar[str] = "{correct:,} correct of {total:,}"

    def run(self, console: "Console") -> None:
        """Prints what each repetition has shown."""
        from jaxcnn.arena.files import load_entry
        from jaxcnn.arena.verify import verify

        check_range("--runs", self.runs, 1, 10_000)
        check_range("--seed", self.seed, 0, 2**32 - 1)
        if not self.files:
            raise UserError("jaxcnn arena verify takes the file of at least one entry")
        if self.optimizer:
            trust_optimizers([self.optimizer])
        entries = {name: load_entry(as_path(name)) for name in self.files}
        tracks = [_track_of(name, entry) for name, entry in entries.items()]
        mesh, echo = self.devices.join(("ensemble",), "here"), make_echo(console)
        different = 0
        loaded = load_tracks(tracks, self.data, echo)
        for (name, entry), (track, dataset) in zip(entries.items(), loaded, strict=True):
            findings, elsewhere = verify(
                entry, track, dataset, runs=self.runs, seed=self.seed, mesh=mesh
            )
            where = f" (another {', '.join(elsewhere)} than there)" if elsewhere else ""
            for one in findings:
                there, here = (self._WORDS.format(**run) for run in (one.expected, one.found))
                echo(f"{name}, {one.run}: {one.verdict}, {there} there, {here} here{where}")
            different += sum(one.verdict == "DIFFERENT" for one in findings)
        if different:
            echo(f"{different} runs differ", "bold red")
            raise SystemExit(1)


def _track_of(name: str, entry: "Entry") -> "Track":
    """Returns the track of an entry, whose optimizer can be used.

    Raises:
        UserError: there is no such track or optimizer.
    """
    from jaxcnn.arena.track import find_track

    try:
        track = find_track(entry["track"], entry["variant"])
        track.for_optimizer(entry["optimizer"])
    except (UserError, ValueError) as error:
        raise UserError(f"{name} cannot be repeated: {error}") from None
    return track


def _once(flag: str, names: Sequence[str]) -> None:
    """Refuses names of which there are none, or one twice."""
    if not names or len(set(names)) < len(names):
        raise UserError(f"{flag} takes at least one name, and each name once")


def load_tracks(
    tracks: "Sequence[Track]", data: DataFlags, echo: "Echo"
) -> "list[tuple[Track, Dataset]]":
    """Returns tracks with their data, see `Track.prepare`. Each data set is loaded once.

    Args:
        tracks: to load the data sets of.
        data: where they are.
        echo: prints a line, see `make_echo`.

    Raises:
        UserError: a data set is not available.
    """
    loaded: dict[str, Dataset] = {}
    for track in tracks:
        if track.dataset not in loaded:
            synthetic = track.dataset.startswith("synthetic-")
            source = "synthetic" if synthetic else track.dataset
            loaded[track.dataset] = data.load(track.recipe.network, source, echo)
    return [track.prepare(loaded[track.dataset]) for track in tracks]


def show(folder: Path, console: "Console", titles: Iterable[str]) -> None:
    """Writes the leaderboard of all entries, and prints the tables of tracks.

    Args:
        folder: the workdir of all entries.
        console: to print on.
        titles: of the tracks and variants.
    """
    from jaxcnn.arena.leaderboard import markdown_table, write_leaderboard
    from jaxcnn.arena.scores import load_scores

    tracks = load_scores(folder)
    page = write_leaderboard(tracks, folder / "leaderboard.html")
    for track in tracks:
        if track.name in titles:
            table = markdown_table(track, len(track.scores))
            console.print(f"{track.name}\n\n{table}\n", soft_wrap=True, markup=False)
    console.print(f"entries: {folder}\nleaderboard: {page}", soft_wrap=True, markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `jaxcnn arena` with these arguments.

    Args:
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: see `jaxcnn.cli.tools.main`.
    """
    from jaxcnn.cli import tools

    tools.main(["arena", *(sys.argv[1:] if argv is None else argv)])
