"""Training speed in images per second: jaxcnn against PyTorch's fastest configuration.

    python benchmarks/throughput.py --out benchmarks/results/throughput-cpu.json
    python benchmarks/throughput.py --quick

All contenders of a row train the same network on the same images in one process, in turn, round
after round. A row's ratio is the median time of PyTorch's fastest configuration over that of
jaxcnn, with a 95 % bootstrap interval over rounds. Beside them train plain layers of Flax, a jitted
step at a time. The share is the arithmetic of jaxcnn's step over that of a large matrix product of
PyTorch in the same rounds. Compilation is not timed, but recorded. Prints a table, and writes a
figure beside the JSON file. Needs jax, flax, optax, numpy, matplotlib and torch.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import contenders
import jax
import numpy as np
import torch
from output import write_json

from jaxcnn.devices import environment

_SECONDS = 1.0  # of a timed epoch of PyTorch in eager mode, which decides the number of steps
_LEAST, _MOST = 2, 4096  # steps of an epoch
_ROUNDS = 7
_RESAMPLES = 2000  # of the bootstrap


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--networks", nargs="+", default=["mnist", "cifar10"], choices=["mnist", "cifar10"]
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[4, 64, 512, 4096], metavar="B"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=["float32", "tf32", "bfloat16"],
        default=["float32", "tf32", "bfloat16"] if torch.cuda.is_available() else ["float32"],
    )
    parser.add_argument(
        "--variants", nargs="+", choices=list(contenders.variants()), metavar="NAME",
        default=list(contenders.variants()), help="of PyTorch (default: all)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="timed, at least 5")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of a timed epoch, about")
    parser.add_argument("--quick", action="store_true", help="a short run of about a minute")
    parser.add_argument("--out", type=Path, default=Path("throughput.json"), metavar="FILE.json")
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        parser.error("--rounds takes a whole number from 5")
    if any(size < 1 for size in arguments.batch_sizes):
        parser.error("--batch-sizes takes whole numbers from 1")
    if arguments.quick:
        arguments.seconds = min(arguments.seconds, 0.2)
        arguments.rounds = 5
        if arguments.variants == list(contenders.variants()):
            arguments.variants = arguments.variants[:3]
        if arguments.batch_sizes == parser.get_default("batch_sizes"):
            arguments.batch_sizes = [4, 64]
    return arguments


def measure(task: contenders.Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times all contenders of a task and returns a row of the results."""
    variants = {name: contenders.variants()[name] for name in arguments.variants}
    epochs: dict[str, contenders.Epoch] = {}
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, make in {"jaxcnn": contenders.jaxcnn, "flax": contenders.flax, **variants}.items():
        began = time.perf_counter()
        try:
            torch.compiler.reset()  # otherwise it compiles for dynamic batch sizes
            epoch = make(task)
            epoch()
            first[name] = time.perf_counter() - began
            epoch()  # some shapes occur first in the second epoch
        except Exception as error:
            if name == "jaxcnn":
                raise
            # This machine cannot run it, for example max-autotune without a compiler.
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            continue
        epochs[name] = epoch
    times: dict[str, list[float]] = {name: [] for name in epochs}
    products = []
    for _ in range(arguments.rounds):
        products.append(product_speed())
        for name, epoch in epochs.items():
            began = time.perf_counter()
            epoch()
            times[name].append((time.perf_counter() - began) / task.steps)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    theirs = [name for name in medians if name not in ("jaxcnn", "flax")]
    best = min(theirs, key=medians.__getitem__)
    work = step_operations(task.network, task.batch_size) / medians["jaxcnn"]
    low, high = interval(times[best], times["jaxcnn"])

    def speed(name: str) -> dict[str, Any]:
        quartiles = np.percentile(times[name], (25, 75))
        return {
            "images_per_second": task.batch_size / medians[name],
            "step_seconds_median": medians[name],
            "step_seconds_interquartile_range": float(quartiles[1] - quartiles[0]),
            "step_seconds": times[name],
            "first_epoch_seconds": first[name],
        }

    return {
        "network": task.network,
        "batch_size": task.batch_size,
        "precision": task.precision,
        "steps": task.steps,
        "jaxcnn_images_per_second": task.batch_size / medians["jaxcnn"],
        "best_pytorch": best,
        "best_pytorch_images_per_second": task.batch_size / medians[best],
        "ratio": medians[best] / medians["jaxcnn"],
        "ratio_low": low,
        "ratio_high": high,
        "ratio_to_eager": medians["eager"] / medians["jaxcnn"] if "eager" in medians else None,
        "gflops": work / 1e9,
        "product_gflops": statistics.median(products) / 1e9,
        "share": work / statistics.median(products),
        "ratio_to_flax": medians["flax"] / medians["jaxcnn"] if "flax" in medians else None,
        "jaxcnn": speed("jaxcnn"),
        "flax": speed("flax") if "flax" in medians else None,
        "pytorch": {name: speed(name) for name in theirs},
        "failed": failed,
    }


def step_operations(network: str, batch_size: int) -> int:
    """Returns the additions and multiplications of a step's convolutions and matrix products.

    Two for a multiply-add, forward and for both gradients, but for that of the images.
    """
    if network == "mnist":
        first = 28**2 * 25 * 4
        others = 14**2 * 100 * 8 + 392 * 512 + 5120
    else:
        first = 32**2 * 27 * 4
        others = 32**2 * (36 * 8 + 72 * 16) + 16**2 * 144 * 32 + 8**2 * 288 * 64
        others += 1024 * 512 + 5120
    return 2 * batch_size * (2 * first + 3 * others)


def product_speed(size: int = 2048) -> float:
    """Returns the additions and multiplications a second of a float32 product of two matrices."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = torch.randn(2, size, size, device=device)
    seconds = []
    for _ in range(4):  # the first wakes the threads up
        began = time.perf_counter()
        (one @ other)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[1:])


def interval(theirs: list[float], ours: list[float]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the ratio of medians, resampling whole rounds."""
    rng = np.random.default_rng(0)
    rounds = rng.integers(0, len(ours), (_RESAMPLES, len(ours)))
    ratios = np.median(np.array(theirs)[rounds], 1) / np.median(np.array(ours)[rounds], 1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def step_count(network: str, batch_size: int, precision: Any, seconds: float) -> int:
    """Chooses the steps of an epoch.

    Args:
        network: "mnist" or "cifar10".
        batch_size: images per step.
        precision: see `contenders.Task`.
        seconds: that PyTorch in eager mode should take for the steps.

    Returns:
        The number of steps, whose images are at most about 60,000.
    """
    probe = contenders.Task(network, batch_size, 4, precision)
    epoch = contenders.pytorch(probe)
    epoch()
    began = time.perf_counter()
    epoch()
    step = (time.perf_counter() - began) / probe.steps
    steps = int(np.clip(seconds / step, _LEAST, min(_MOST, max(_LEAST, 60_000 // batch_size))))
    return steps if steps < contenders.GRAPH_STEPS else steps - steps % contenders.GRAPH_STEPS


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| network | batch | precision | jaxcnn, images/s | PyTorch, images/s | which | ratio "
        "| Flax, images/s | share |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['network']} | {row['batch_size']:,} | {row['precision']} "
        f"| {row['jaxcnn_images_per_second']:,.0f} | {row['best_pytorch_images_per_second']:,.0f} "
        f"| {row['best_pytorch']} "
        f"| **{row['ratio']:.2f}** ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) "
        f"| {row['flax']['images_per_second'] if row['flax'] else 0:,.0f} | {row['share']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], machine: str, path: Path) -> None:
    """Writes a figure with a panel for each network and precision: bars of speed by batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((row["network"], row["precision"]) for row in rows))
    names = ["jaxcnn", *dict.fromkeys(name for row in rows for name in row["pytorch"])]
    colors = ["#d1495b", *mpl.colormaps["Blues"](np.linspace(0.35, 0.95, len(names) - 1))]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 3.4 * len(panels) + 1.0), squeeze=False, layout="constrained"
    )
    for axis, (network, precision) in zip(axes[:, 0], panels, strict=True):
        chosen = [r for r in rows if (r["network"], r["precision"]) == (network, precision)]
        width = 0.84 / len(names)
        for index, name in enumerate(names):
            for position, row in enumerate(chosen):
                entry = row["jaxcnn"] if name == "jaxcnn" else row["pytorch"].get(name)
                if entry is None:
                    continue
                # Relative, as the batch sizes differ by two orders of magnitude.
                height = entry["images_per_second"] / row["best_pytorch_images_per_second"]
                place = position + (index - (len(names) - 1) / 2) * width
                bars = axis.bar(
                    place, height, 0.92 * width, color=colors[index],
                    label=name if position == 0 else None,
                )  # fmt: skip
                if name in ("jaxcnn", row["best_pytorch"]):
                    text = f"{entry['images_per_second']:,.0f}"
                    axis.bar_label(bars, [text], fontsize=7, padding=1, rotation=0)
        axis.axhline(1.0, color="0.3", linewidth=0.8, linestyle=":")
        axis.set_xticks(range(len(chosen)), [f"batch {row['batch_size']:,}" for row in chosen])
        axis.set_ylabel("speed, best PyTorch = 1")
        axis.set_title(f"{network}, {precision}", loc="left", fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.12)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle(f"Training speed, images/s above the bars; {machine}", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Runs the benchmark."""
    warnings.filterwarnings("ignore", module="torch")
    arguments = parse_arguments()
    rows = []
    content = {
        "rows": rows,
        "rounds": arguments.rounds,
        "torch_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": {"torch": torch.get_num_threads(), "cpus": len(os.sched_getaffinity(0))},
        "flags": {
            "command": " ".join(sys.argv),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        },
    }
    for precision in arguments.precisions:
        for network in arguments.networks:
            for batch_size in arguments.batch_sizes:
                steps = step_count(network, batch_size, precision, arguments.seconds)
                row = measure(contenders.Task(network, batch_size, steps, precision), arguments)
                rows.append(row)
                what = f"{network} {batch_size} {precision}"
                print(
                    f"{what}: {row['ratio']:.2f} times {row['best_pytorch']}",
                    file=sys.stderr,
                    flush=True,
                )
                for name, why in row["failed"].items():
                    print(f"  {name} failed: {why}", file=sys.stderr, flush=True)
                # After every row, so that an interrupted benchmark leaves its results.
                write_json(arguments.out, content, torch=torch.__version__)
                jax.clear_caches()
    plot(rows, f"{environment.device()}, torch {torch.__version__}, jax {jax.__version__}",
         arguments.out.with_suffix(".png"))  # fmt: skip
    print(table(rows))
    print(f"\n{arguments.out}, {arguments.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
