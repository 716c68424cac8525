"""Images a second in training: jaxcnn against the best that PyTorch does on the same machine.

    python benchmarks/throughput.py --out benchmarks/results/throughput-cpu.json
    python benchmarks/throughput.py --quick

All contenders of a row train the same network on the same images, in turn, round after round, in
one process; a row's ratio is the median time of PyTorch's fastest variant over jaxcnn's. Its
interval, 95 %, comes from drawing whole rounds anew (bootstrap). Compilation is left out, and
stated. Beside the JSON, a table is printed and a picture written. Needs jax, flax, optax, numpy,
matplotlib and torch.
"""

import argparse
import json
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

from jaxcnn.devices import environment

# Seconds that a timed epoch of PyTorch's eager variant is to take, and its least and most steps.
_SECONDS = 1.0
_LEAST, _MOST = 2, 4096
_ROUNDS = 7
_BOOTSTRAP = 2000


def flags() -> argparse.Namespace:
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
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="a timed epoch, about")
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute")
    parser.add_argument("--out", type=Path, default=Path("throughput.json"), metavar="FILE.json")
    found = parser.parse_args()
    if found.rounds < 5:
        parser.error("--rounds takes a whole number from 5")
    if any(size < 1 for size in found.batch_sizes):
        parser.error("--batch-sizes takes whole numbers from 1")
    if found.quick:
        found.seconds = min(found.seconds, 0.2)
        found.rounds = 5
        if found.variants == list(contenders.variants()):
            found.variants = found.variants[:3]
        if found.batch_sizes == parser.get_default("batch_sizes"):
            found.batch_sizes = [4, 64]
    return found


def measure(task: contenders.Task, found: argparse.Namespace) -> dict[str, Any]:
    """Times all contenders on one task and returns a row."""
    variants = {name: contenders.variants()[name] for name in found.variants}
    epochs: dict[str, contenders.Epoch] = {}
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    for name, make in {"jaxcnn": contenders.jaxcnn, **variants}.items():
        began = time.perf_counter()
        try:
            torch.compiler.reset()  # or it takes the batch size for dynamic
            epoch = make(task)
            epoch()
            first[name] = time.perf_counter() - began
            epoch()  # the second still finds some sizes for the first time
        except Exception as error:
            if name == "jaxcnn":
                raise
            # A variant that this machine cannot run, max-autotune without a compiler say.
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            continue
        epochs[name] = epoch
    times: dict[str, list[float]] = {name: [] for name in epochs}
    for _ in range(found.rounds):
        for name, epoch in epochs.items():
            began = time.perf_counter()
            epoch()
            times[name].append((time.perf_counter() - began) / task.steps)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    best = min((name for name in medians if name != "jaxcnn"), key=medians.__getitem__)
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
        "jaxcnn": speed("jaxcnn"),
        "pytorch": {name: speed(name) for name in epochs if name != "jaxcnn"},
        "failed": failed,
    }


def interval(theirs: list[float], ours: list[float]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the ratio of medians, drawing pairs of one round."""
    rng = np.random.default_rng(0)
    rounds = rng.integers(0, len(ours), (_BOOTSTRAP, len(ours)))
    ratios = np.median(np.array(theirs)[rounds], 1) / np.median(np.array(ours)[rounds], 1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def step_count(network: str, batch_size: int, precision: Any, seconds: float) -> int:
    """Returns how many eager steps take about so long, at most an epoch of 60,000 images."""
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
        "| network | batch | precision | jaxcnn, images/s | PyTorch, images/s | which | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['network']} | {row['batch_size']:,} | {row['precision']} "
        f"| {row['jaxcnn_images_per_second']:,.0f} | {row['best_pytorch_images_per_second']:,.0f} "
        f"| {row['best_pytorch']} "
        f"| **{row['ratio']:.2f}** ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    """Draws a panel for each network and precision: bars of images/s, by batch size."""
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
    figure.suptitle(f"Training speed, images/s over the bars; {where}", fontsize=10)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Runs the benchmark."""
    warnings.filterwarnings("ignore", module="torch")
    found = flags()
    rows = []
    content = {
        "rows": rows,
        "rounds": found.rounds,
        "device": environment.device(),
        "torch_device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": {"torch": torch.get_num_threads(), "cpus": len(os.sched_getaffinity(0))},
        "versions": {**environment.versions(), "torch": torch.__version__},
        "flags": {
            "command": " ".join(sys.argv),
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        },
    }
    found.out.parent.mkdir(parents=True, exist_ok=True)
    for precision in found.precisions:
        for network in found.networks:
            for batch_size in found.batch_sizes:
                steps = step_count(network, batch_size, precision, found.seconds)
                row = measure(contenders.Task(network, batch_size, steps, precision), found)
                rows.append(row)
                what = f"{network} {batch_size} {precision}"
                print(
                    f"{what}: {row['ratio']:.2f} times {row['best_pytorch']}",
                    file=sys.stderr,
                    flush=True,
                )
                for name, why in row["failed"].items():
                    print(f"  {name} failed: {why}", file=sys.stderr, flush=True)
                # After every row, so that a run that is cut short leaves what it measured.
                found.out.write_text(json.dumps(content, indent=1) + "\n")
                jax.clear_caches()
    draw(rows, f"{content['device']}, torch {torch.__version__}, jax {jax.__version__}",
         found.out.with_suffix(".png"))  # fmt: skip
    print(table(rows))
    print(f"\n{found.out}, {found.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
