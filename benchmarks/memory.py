"""Peak memory of training: jaxcnn and PyTorch's variants, each in a process of its own.

    python benchmarks/memory.py --out benchmarks/results/memory-cpu.json

On CPU it is what the peak of the resident memory grows by between the imports, which are the same
for all, and the end of the second epoch; the data set, 2 to 12 MB here, and what a compiler takes
are within. On a GPU it is the most that the framework's allocator held. Needs jax, flax, optax,
numpy and torch.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import contenders
import jax
import torch


def peak_bytes() -> int:
    """Returns the peak so far, of this process or of what is allocated on the GPU."""
    if torch.cuda.is_available():
        ours = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return max(ours, torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(network: str, batch_size: int, name: str) -> int:
    """Trains two epochs of 4,096 images, or 2 steps, and returns the bytes that they took."""
    task = contenders.Task(network, batch_size, max(2, 4096 // batch_size))
    before = 0 if torch.cuda.is_available() else peak_bytes()
    make = contenders.jaxcnn if name == "jaxcnn" else contenders.variants()[name]
    epoch = make(task)
    epoch()
    epoch()
    return peak_bytes() - before


def main() -> None:
    """Runs the benchmark, or one measurement of it."""
    names = ["jaxcnn", *contenders.variants()]
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=["mnist", "cifar10"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 512], metavar="B")
    parser.add_argument("--variants", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    found = parser.parse_args()
    if found.one:
        network, batch_size, name = found.one
        print(measure(network, int(batch_size), name))
        return
    rows = []
    # Otherwise jax takes most of a GPU's memory at once.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for network in found.networks:
        for batch_size in found.batch_sizes:
            peaks = {}
            for name in found.variants:
                command = [sys.executable, __file__, "--one", network, str(batch_size), name]
                done = subprocess.run(command, capture_output=True, text=True, env=environment)
                if done.returncode == 0:
                    peaks[name] = int(done.stdout.split()[-1])
            rows.append({"network": network, "batch_size": batch_size, "peak_bytes": peaks})
            shown = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in peaks.items())
            print(f"{network} {batch_size}: {shown}", flush=True)
    versions = {**environment.versions(), "torch": torch.__version__}
    content = {"rows": rows, "versions": versions, "device": environment.device()}
    if found.out:
        found.out.parent.mkdir(parents=True, exist_ok=True)
        found.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
