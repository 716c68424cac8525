"""Seconds to load a data set: prepared and decoded in the first call, then memory-mapped.

    python benchmarks/loading.py --archive-dir DIR --data-dir DIR --out FILE.json

Each load runs in a new process. The first one (cold) prepares MNIST from its archives in a
temporary folder and decodes CIFAR-10 from `--data-dir`, and includes the import of TFDS; the
others (warm) verify and map the cache.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro
from output import write_json

# The program of each process; the time of a load is what a start costs a user.
_PROGRAM = """
import sys, time
from jaxcnn import load_data
name, data_dir, archive_dir, cache_dir = sys.argv[1:]
began = time.perf_counter()
dataset = load_data(
    name, data_dir=data_dir or None, archive_dir=archive_dir or None, cache_dir=cache_dir
)
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Flags:
    """Times cold and warm loads of both data sets."""

    archive_dir: str
    """A folder with MNIST's archives."""
    data_dir: str
    """A TFDS folder that holds CIFAR-10."""
    out: Path
    """The JSON file to write."""
    repeats: int = 7


def main(flags: Flags) -> None:
    """Runs the benchmark."""
    seconds: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data_dir, archive_dir in (
            ("mnist", f"{folder}/tfds", flags.archive_dir),
            ("cifar10", flags.data_dir, ""),
        ):
            command = [sys.executable, "-c", _PROGRAM, name, data_dir, archive_dir, folder]
            times = [
                float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(flags.repeats + 1)
            ]
            seconds[name] = {
                "cold": times[0],
                "warm_median": statistics.median(times[1:]),
                "warm_all": times[1:],
            }
    write_json(flags.out, {"seconds": seconds})
    print(json.dumps(seconds, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Flags))
