"""Kills runs with SIGKILL at random moments and looks whether anything is lost or changed.

    python -m tests.killing --kills 30

After every kill each checkpoint that is listed must verify and restore; a run that has been killed
many times must end with the bits of one that was not.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxcnn import checkpoint, trained

SCRIPT = Path(__file__).parent.parent / "experiments" / "mnist.py"
SAVE_EVERY = 15  # steps
FLAGS = "--data synthetic --epochs 3 --batch-size 500 --keep 3".split()
FLAGS += ["--checkpoint-every", f"{SAVE_EVERY}steps"]
FEEDS = ("device", "stream")


@dataclass
class Findings:
    """What was seen.

    Attributes:
        kills: of running processes.
        mid_save: kills that left a checkpoint half written or half removed.
        verified: checkpoints that were there after a kill, and verified and restored.
        resumed: processes that went on from a checkpoint.
        finished: runs that came to their end, with the bits of the undisturbed one.
        defects: what should not be, in words.
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
    """Returns all of a finished run that must not depend on kills."""
    last = checkpoint.listed(workdir / "checkpoints")[-1].verify()
    times = ("seconds", "images_per_second")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    metrics = [
        {name: value for name, value in json.loads(line).items() if name not in times}
        for line in lines
    ]
    result = json.loads((workdir / "result.json").read_text())
    return {
        "arrays": last["leaves"],
        "metrics": metrics,
        "correct": result["test_correct"],
        "steps": last["step"],
    }


def inspect(workdir: Path, found: Findings) -> None:
    """Verifies and restores every checkpoint that a killed process has left."""
    folder = workdir / "checkpoints"
    if folder.is_dir():
        found.mid_save += any(path.suffix in (".partial", ".removed") for path in folder.iterdir())
    for saved in checkpoint.listed(folder):
        try:
            trained.load(workdir, str(saved.step))
        except Exception as error:
            found.defects.append(f"{saved.folder.name}: {error}")
        else:
            found.verified += 1


def kill(
    process: subprocess.Popen[str], workdir: Path, generator: random.Random, pace: float
) -> None:
    """Kills a run at a random moment, unless it ends before that.

    The moment follows how far the run has come, as a busy machine is slow.

    Args:
        process: of the run.
        workdir: of it.
        generator: of the moment.
        pace: seconds between two saves, about.
    """
    folder = workdir / "checkpoints"

    def step() -> int:
        return max((saved.step for saved in checkpoint.listed(folder)), default=0)

    goal = step() + SAVE_EVERY * generator.randint(0, 8)
    while process.poll() is None and step() < goal:
        time.sleep(0.005)
    time.sleep(generator.uniform(0, pace))
    process.kill()


def torment(kills: int, seed: int, flags: Sequence[str] = ()) -> Findings:
    """Kills so many processes.

    Args:
        kills: how many.
        seed: of the moments.
        flags: further ones of the experiment.
    """
    found, generator = Findings(), random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(folder / "warm", flags).communicate()  # draws the data and compiles
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
                found.resumed += "going on from" in out
                if "damaged" in out or "Traceback" in out:
                    found.defects.append(out)
            if not found.defects:
                found.finished += 1
                if outcome(workdir) != expected:
                    found.defects.append(f"{workdir.name} ended with other bits")
    return found


def main() -> None:
    """Prints what was seen; ends with status 1 if anything was lost or changed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = torment(asked.kills, asked.seed)
    sys.stdout.write(f"{json.dumps(vars(found), indent=2)}\n")
    sys.exit(bool(found.defects))


if __name__ == "__main__":
    main()
