"""Kills commands with SIGKILL at random moments and checks that nothing is lost or changed.

    python -m tests.killing --kills 30
    python -m tests.killing --kills 30 --what study

After every kill of a run each listed checkpoint must verify and restore. A command that was killed
many times must end with results that are bit-identical to those of an undisturbed one.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxcnn.data.dataset import load_data
from jaxcnn.storage import checkpoint
from jaxcnn.train.trained import load_trained
from tests import conftest, saved
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "experiments" / "mnist.py"
SAVE_EVERY = 15  # steps
FLAGS = "--data synthetic --epochs 2 --batch-size 500 --keep 3 --report never".split()
FLAGS += ["--checkpoint-every", f"{SAVE_EVERY}steps"]
FEEDS = ("device", "stream")


@dataclass
class Findings:
    """The counts of what happened.

    Attributes:
        kills: of running processes.
        mid_save: kills that left a checkpoint partly written or partly removed.
        verified: checkpoints that existed after a kill, were verified and restored.
        resumed: processes that resumed from a checkpoint.
        finished: runs that ended, bit-identical to the undisturbed one.
        defects: descriptions of what went wrong.
    """

    kills: int = 0
    mid_save: int = 0
    verified: int = 0
    resumed: int = 0
    finished: int = 0
    defects: list[str] = field(default_factory=list)


def start(workdir: Path, flags: Sequence[str]) -> subprocess.Popen[str]:
    """Starts the experiment."""
    # Unbuffered, or what a killed process had printed is lost.
    command = [sys.executable, "-u", str(SCRIPT), *FLAGS, *flags, "--workdir", str(workdir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns everything of a finished run that must not depend on kills."""
    last = checkpoint.list_checkpoints(workdir / "checkpoints")[-1].verify()
    times = ("seconds", "images_per_second")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {name: value for name, value in json.loads(line).items() if name not in times}
        for line in lines
    ]
    result = json.loads((workdir / "result.json").read_text())
    return {
        "arrays": last["files"],
        "metrics": metrics,
        "correct": result["test_correct"],
        "steps": last["step"],
    }


def inspect(workdir: Path, found: Findings) -> None:
    """Verifies and restores every checkpoint that a killed process has left."""
    folder = workdir / "checkpoints"
    if folder.is_dir():
        found.mid_save += any(path.suffix == ".staging" for path in folder.iterdir())
    for one in checkpoint.list_checkpoints(folder):
        try:
            load_trained(workdir, str(one.step))
        except Exception as error:
            found.defects.append(f"{one.folder.name}: {error}")
        else:
            found.verified += 1


def kill(
    process: subprocess.Popen[str], workdir: Path, generator: random.Random, pace: float
) -> None:
    """Kills a run at a random moment, unless it ends before that.

    The moment depends on the progress of the run, not on the clock: a busy machine is slow.

    Args:
        process: of the run.
        workdir: of the run.
        generator: of the moment.
        pace: approximate seconds between two saves.
    """
    folder = workdir / "checkpoints"

    def step() -> int:
        return max((one.step for one in checkpoint.list_checkpoints(folder)), default=0)

    goal = step() + SAVE_EVERY * generator.randint(0, 8)
    while process.poll() is None and step() < goal:
        time.sleep(0.005)
    time.sleep(generator.uniform(0, pace))
    process.kill()


def torment(kills: int, seed: int, flags: Sequence[str] = ()) -> Findings:
    """Kills processes of the experiment.

    Args:
        kills: number of processes to kill.
        seed: of the moments.
        flags: further ones of the experiment.
    """
    found, generator = Findings(), random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = start(folder / "undisturbed", flags).communicate()[0]
        try:
            expected = outcome(folder / "undisturbed")
        except (OSError, IndexError):
            found.defects.append(f"the undisturbed run failed: {out}")
            return found
        seconds = json.loads((folder / "undisturbed" / "result.json").read_text())["train_seconds"]
        pace = seconds * SAVE_EVERY / expected["steps"]
        number = 0
        while found.kills < kills and not found.defects:
            workdir = folder / f"run-{number}"
            number += 1
            while not (workdir / "result.json").exists() and not found.defects:
                process = start(workdir, [*flags, "--feed", generator.choice(FEEDS)])
                if found.kills < kills:
                    kill(process, workdir, generator, pace)
                out, _ = process.communicate()
                if process.returncode == -signal.SIGKILL:
                    found.kills += 1
                    inspect(workdir, found)
                elif process.returncode:
                    found.defects.append(f"status {process.returncode}: {out}")
                found.resumed += "resuming from" in out
                if "damaged" in out or "Traceback" in out:
                    found.defects.append(out)
            if not found.defects:
                found.finished += 1
                if outcome(workdir) != expected:
                    found.defects.append(f"{workdir.name} ended with different bits")
    return found


@dataclass(frozen=True)
class Kind:
    """A command other than a run that is killed.

    Attributes:
        command: returns the command line, given the folder in which it works and one with a run.
        files: that it leaves there, as patterns.
        whole: those of the files that are complete or missing, even after a kill.
    """

    command: Callable[[Path, Path], list[str]]
    files: tuple[str, ...]
    whole: tuple[str, ...] = ()


def _jaxcnn(*argv: object) -> list[str]:
    return ["-m", "jaxcnn", *map(str, argv)]


def _load_mnist(folder: Path, _: Path) -> list[str]:
    archives = conftest.REAL_DATA / "archives"
    call = (
        f"load_data('mnist', data_dir='{folder}', archive_dir='{archives}', cache_dir='{folder}')"
    )
    return ["-c", f"from jaxcnn import load_data; {call}"]


def _compile(folder: Path, _: Path) -> list[str]:
    argv = (
        "--data synthetic --epochs 1 --batch-size 500 --report never --checkpoint-every 0".split()
    )
    return [str(SCRIPT), *argv, "--workdir", str(folder / "run")]


KINDS = {
    "study": Kind(
        lambda folder, _: ["-m", "tests.several", "0", "1", "0", str(folder), "study"],
        ("runs.jsonl", "study.json"),
        ("study.json",),
    ),
    "arena": Kind(
        lambda folder, _: ["-m", "tests.several", "0", "1", "0", str(folder), "arena"],
        ("mnist-sprint/sgd.json",),
        ("mnist-sprint/sgd.json",),
    ),
    "export": Kind(
        lambda folder, run: _jaxcnn(
            "export", run, "--format", "stablehlo", "--out", folder / "x.stablehlo"
        ),
        ("x.stablehlo", "x.stablehlo.md"),
        ("x.stablehlo", "x.stablehlo.md"),
    ),
    "report": Kind(
        lambda folder, run: _jaxcnn("report", run, "--out", folder),
        ("report.html", "*.png"),
        ("report.html", "*.png"),
    ),
    # The bytes of the records differ from one preparation to the next; the decoded arrays do not.
    "data": Kind(_load_mnist, ("mnist-*/*.npy",), ("mnist-*/*.npy",)),
    "compiling": Kind(_compile, ("run/checkpoints/run.json",)),
}


def content(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Returns the digests of files by name; the names of some folders depend on the path."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def harass(what: str, kills: int, seed: int) -> Findings:
    """Kills processes of one of `KINDS`.

    Args:
        what: its key.
        kills: number of processes to kill.
        seed: of the moments.
    """
    found, generator, kind = Findings(), random.Random(seed), KINDS[what]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "saved"
        if what in ("export", "report"):
            run = saved.save(run, load_data("mnist", source="synthetic"))
        if what == "compiling":
            load_data("mnist", source="synthetic")  # before, as it is not to be killed

        def start(workdir: Path) -> subprocess.Popen[str]:
            workdir.mkdir(exist_ok=True)
            variables = dict(os.environ)
            if what == "compiling":
                variables["JAX_COMPILATION_CACHE_DIR"] = str(workdir / "programs")
            return subprocess.Popen(
                [sys.executable, *kind.command(workdir, run)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=variables,
                cwd=REPOSITORY,
            )

        def result(workdir: Path) -> Any:
            ended = content(workdir, kind.files)
            return (ended, outcome(workdir / "run")) if what == "compiling" else ended

        began = time.perf_counter()
        out, _ = (process := start(folder / "undisturbed")).communicate()
        seconds = time.perf_counter() - began
        if process.returncode:
            found.defects.append(f"the undisturbed one failed: {out}")
            return found
        expected = result(folder / "undisturbed")
        sound = content(folder / "undisturbed", kind.whole)
        number = 0
        while found.kills < kills and not found.defects:
            workdir = folder / f"work-{number}"
            number += 1
            ended = False
            while not ended and not found.defects:
                process = start(workdir)
                if found.kills < kills:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(generator.uniform(0, seconds))
                    process.kill()
                out, _ = process.communicate()
                if process.returncode == -signal.SIGKILL:
                    found.kills += 1
                    there = content(workdir, kind.whole)
                    found.verified += len(there)
                    if wrong := [path for path in there if there[path] != sound.get(path)]:
                        found.defects.append(f"not complete after a kill: {wrong}")
                elif process.returncode or "Traceback" in out:
                    found.defects.append(f"status {process.returncode}: {out}")
                if process.returncode == 0 or (workdir / "run" / "result.json").exists():
                    ended = True
                    found.finished += 1
                    if result(workdir) != expected:
                        found.defects.append(f"{workdir.name} ended with other files")
    return found


def main() -> None:
    """Prints the counts; ends with status 1 if anything was lost or changed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--what", choices=["run", *KINDS], default="run")
    asked = parser.parse_args()
    if asked.what == "run":
        found = torment(asked.kills, asked.seed)
    else:
        found = harass(asked.what, asked.kills, asked.seed)
    sys.stdout.write(f"{json.dumps(vars(found), indent=2)}\n")
    sys.exit(bool(found.defects))


if __name__ == "__main__":
    main()
