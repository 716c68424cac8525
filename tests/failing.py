"""Lets the writes of a run below its workdir fail from the n-th one on, for every n.

    python -m tests.failing --every 1

Such a run has to end with one sentence and status 2. The same command has to complete it then, with
arrays bit-identical to those of a run without failures. `tests/failing.c` lets writes fail.
"""

import argparse
import concurrent.futures
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

ARGV = "--epochs 2 --batch-size 110 --seed 5 --data mnist --recipe reference --checkpoint-every 1"
# An experiment on few images.
EXPERIMENT = """
import sys
from experiments.mnist import main
from jaxcnn.data import dataset
from tests.stripes import striped_split
splits = (striped_split((28, 28, 1), count, count) for count in (330, 70))
dataset.load_data = lambda name, **_: dataset.Dataset(name, "tiny", *splits, tuple("0123456789"))
main(sys.argv[1:])
"""
REASONS = (errno.EDQUOT, errno.EACCES, errno.EIO, errno.ENOSPC)
NEVER = 10**6


@dataclass
class Findings:
    """What the attempts have found.

    Attributes:
        failed: number of runs with writes that failed.
        completed: number of those that the same command completed.
        unharmed: number of runs with fewer writes.
        defects: every violation, in words.
    """

    failed: int = 0
    completed: int = 0
    unharmed: int = 0
    defects: list[str] = field(default_factory=list)


def build(folder: Path) -> Path:
    """Compiles the library that is preloaded.

    Args:
        folder: of the library.

    Returns:
        The path of the library.

    Raises:
        FileNotFoundError: there is no compiler.
    """
    library = folder / "failing.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O", "-o", library, source, "-ldl"], check=True)
    return library


def start(
    workdir: Path, library: Path, after: int, number: int
) -> subprocess.CompletedProcess[str]:
    """Runs the experiment.

    Args:
        workdir: of the run.
        library: see `build`.
        after: number of calls that write below the workdir and succeed; all others fail.
        number: errno of those that fail.

    Returns:
        The ended process, with its output.
    """
    failing = {"FAIL_BELOW": str(workdir), "FAIL_AFTER": str(after), "FAIL_WITH": str(number)}
    return subprocess.run(
        [sys.executable, "-c", EXPERIMENT, *ARGV.split(), "--workdir", str(workdir)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "LD_PRELOAD": str(library), **failing},
        capture_output=True,
        text=True,
        check=False,
    )


def outcome(workdir: Path) -> dict[str, Any]:
    """Returns everything of a finished run that must not depend on failures."""
    from tests import killing

    figures = killing.content(workdir, ("*.png",))
    assert (workdir / "report.html").exists()
    return {**killing.outcome(workdir), "figures": figures}


def attempt(after: int, folder: Path, library: Path, expected: dict[str, Any]) -> str:
    """Lets a run fail and resumes it.

    Args:
        after: see `start`.
        folder: of the workdir.
        library: see `build`.
        expected: `outcome` of a run without failures.

    Returns:
        "unharmed", "completed", or what is wrong.
    """
    workdir = folder / f"run-{after}"
    number = REASONS[after % len(REASONS)]
    ended = start(workdir, library, after, number)
    where = f"from call {after} on, {errno.errorcode[number]}"
    said = ended.stderr.strip()
    if ended.returncode == 0:
        return "unharmed" if outcome(workdir) == expected else f"{where}: arrays differ"
    if ended.returncode != 2 or "Traceback" in said or said.count("error:") != 1:
        return f"{where}: status {ended.returncode}, {said[-500:]!r}"
    if os.strerror(number) not in said and ": " not in said.partition("error:")[2]:
        return f"{where}: no reason in {said!r}"
    if (workdir / "result.json").exists():
        return f"{where}: counts as ended, {said!r}"
    again = start(workdir, library, NEVER, number)
    if again.returncode:
        return f"{where}: {said!r}, then status {again.returncode}, {again.stderr[-500:]!r}"
    return "completed" if outcome(workdir) == expected else f"{where}: completed with other arrays"


def torment(calls: Sequence[int], jobs: int = 1) -> Findings:
    """Lets one run fail from each of these calls on.

    Args:
        calls: see `after` of `start`.
        jobs: number of runs at a time.
    """
    found = Findings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build(folder)
        undisturbed = start(folder / "undisturbed", library, NEVER, 0)
        if undisturbed.returncode:
            found.defects.append(f"the undisturbed run failed: {undisturbed.stderr}")
            return found
        expected = outcome(folder / "undisturbed")
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for came in pool.map(lambda after: attempt(after, folder, library, expected), calls):
                if came == "unharmed":
                    found.unharmed += 1
                    continue
                found.failed += 1
                if came == "completed":
                    found.completed += 1
                else:
                    found.defects.append(came)
    return found


def main() -> None:
    """Prints the findings; ends with status 1 if anything should not be."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=120)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    found = torment(range(asked.first, asked.last + 1, asked.every), asked.jobs)
    sys.stdout.write(f"{json.dumps(vars(found), indent=2)}\n")
    sys.exit(bool(found.defects))


if __name__ == "__main__":
    main()
