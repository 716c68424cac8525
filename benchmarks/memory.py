"""Peak memory of training: jaxcnn and PyTorch's configurations, each in a process of its own.

    python benchmarks/memory.py --out benchmarks/results/memory-cpu.json

On CPU: the growth of the peak resident memory from after the imports, which are the same for all
contenders, to the end of the second epoch; it includes the data set (2 to 12 MB) and the memory of
the compilers. On GPU: the peak of the framework's allocator. Needs jax, flax, optax, numpy and
torch.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import contenders
import jax
import torch
from output import write_json


def peak_bytes() -> int:
    """Returns the peak so far, of this process or of the allocations on the GPU."""
    if torch.cuda.is_available():
        ours = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return max(ours, torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(network: str, batch_size: int, name: str) -> int:
    """Trains two epochs of 4,096 images, or of 2 steps, and returns the growth of the peak."""
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
    arguments = parser.parse_args()
    if arguments.one:
        network, batch_size, name = arguments.one
        print(measure(network, int(batch_size), name))
        return
    rows = []
    # Otherwise jax allocates most of a GPU's memory at its start.
    variables = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    for network in arguments.networks:
        for batch_size in arguments.batch_sizes:
            peaks = {}
            for name in arguments.variants:
                command = [sys.executable, __file__, "--one", network, str(batch_size), name]
                done = subprocess.run(command, capture_output=True, text=True, env=variables)
                if done.returncode == 0:
                    peaks[name] = int(done.stdout.split()[-1])
            rows.append({"network": network, "batch_size": batch_size, "peak_bytes": peaks})
            shown = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in peaks.items())
            print(f"{network} {batch_size}: {shown}", flush=True)
    if arguments.out:
        write_json(arguments.out, {"rows": rows}, torch=torch.__version__)


if __name__ == "__main__":
    main()
