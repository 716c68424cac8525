"""Seconds from the start of a process to its first training step.

    python benchmarks/startup.py --archive-dir DIR --data-dir DIR --out FILE.json

Each start is a new process that runs an experiment as a user would, with the data set decoded
before: cold, with an empty compilation cache, and warm. Measured are the moment when the first
chunk of steps is handed to the device and the moment when it is finished. One repeat takes about a
minute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from output import write_json

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

# Replaces the progress bar, which is notified of a chunk when it is handed to the device.
_PROGRAM = """
import os, runpy, sys, time
import jax
from jaxcnn.cli import progress

class FirstSteps:
    def start(self, **_): pass
    def epoch(self, _): pass
    def stop(self): pass
    def advance(self, *, images, metrics):
        began = float(os.environ["BEGAN"])
        print(time.time() - began, end=" ")
        jax.block_until_ready(metrics)
        print(time.time() - began, flush=True)
        os._exit(0)

progress.TrainProgress = lambda console: FirstSteps()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_IMPORTS = """
import time
began = time.perf_counter()
import jax
between = time.perf_counter()
from jaxcnn.cli import progress, session
from jaxcnn.storage import compilation
from jaxcnn.train import fit, records
print(between - began, time.perf_counter() - between)
"""


def start(network: str, arguments: list[str], variables: dict[str, str]) -> tuple[float, float]:
    """Starts an experiment and measures its first chunk of steps.

    Args:
        network: "mnist" or "cifar10".
        arguments: of the command line.
        variables: the environment.

    Returns:
        Seconds from the start of the process to the start and to the end of the chunk.
    """
    with tempfile.TemporaryDirectory() as workdir:
        script = str(EXPERIMENTS / f"{network}.py")
        command = [
            sys.executable,
            "-c",
            _PROGRAM,
            script,
            *arguments,
            "--workdir",
            f"{workdir}/run",
        ]
        code = "import os, sys, time; os.environ['BEGAN'] = str(time.time()); "
        code += "os.execv(sys.argv[1], sys.argv[1:])"
        done = subprocess.run(
            # The clock starts in the process that becomes the experiment's.
            [sys.executable, "-S", "-E", "-c", code, *command],
            check=True,
            capture_output=True,
            text=True,
            env=variables,
        )
        first, last = map(float, done.stdout.splitlines()[-1].split())
        return first, last


def summary(starts: list[tuple[float, float]]) -> dict[str, object]:
    """Returns the medians over starts, and all starts."""
    first, last = zip(*starts, strict=True)
    return {
        "first_step_median": statistics.median(first),
        "first_steps_end_median": statistics.median(last),
        "starts": starts,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--archive-dir", required=True, help="a folder with MNIST's archives")
    parser.add_argument("--data-dir", required=True, help="a TFDS folder that holds CIFAR-10")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    seconds: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        variables = {**os.environ, "JAXCNN_CACHE_DIR": f"{folder}/cache"}
        for network, arguments in (
            ("mnist", ["--archive-dir", options.archive_dir, "--data-dir", f"{folder}/tfds"]),
            ("cifar10", ["--data-dir", options.data_dir]),
        ):
            arguments += ["--data", network]
            start(network, arguments, variables)  # decodes the data
            cold, warm = [], []
            for repeat in range(options.repeats):
                programs = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/{network}-{repeat}"}
                cold.append(start(network, arguments, variables | programs))
                warm.append(start(network, arguments, variables | programs))
            seconds[network] = {"cold": summary(cold), "warm": summary(warm)}
        imports = []
        for _ in range(options.repeats):
            done = subprocess.run(
                [sys.executable, "-c", _IMPORTS], check=True, capture_output=True, text=True
            )
            imports.append([float(number) for number in done.stdout.split()])
    content = {
        "seconds": seconds,
        "import_seconds": {
            "jax": statistics.median(jax for jax, _ in imports),
            "jaxcnn_beyond_jax": statistics.median(ours for _, ours in imports),
        },
    }
    write_json(options.out, content)
    print(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
