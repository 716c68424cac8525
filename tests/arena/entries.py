"""Made-up entries of an arena, as plausible as a page or a score needs them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxcnn.recipes import optimizer_defaults
from jaxcnn.study.specification import with_digest

OPTIMIZERS = [name for name, known in optimizer_defaults.OPTIMIZERS.items() if not known.refused]
WINDOWS = 32


def entry(
    optimizer: str,
    track: str = "mnist-sprint",
    variant: str = "standard",
    *,
    trials: int = 16,
    seeds: int = 5,
    total: int = 10_000,
) -> dict[str, Any]:
    """An optimizer's entry, always the same for the same arguments.

    Its accuracy falls with the distance of the learning rate from the best one, and rates far above
    that diverge.
    """
    text = f"{optimizer} {track} {variant}"
    random = np.random.default_rng(list(text.encode()))
    known = optimizer_defaults.OPTIMIZERS.get(optimizer, optimizer_defaults.Defaults())
    default = known.learning_rate
    hard = 5.0 if "cifar10" in track else 1.0
    skill = hard * (0.011 + 0.01 * random.exponential())
    best_rate = default * 10 ** random.normal(0.1, 0.3)

    def run(rate: float, seed: int, images: int) -> dict[str, Any]:
        off = np.log10(rate / best_rate)
        steps = 60 * len(track)
        if off > 1.2:
            at = int(random.integers(1, steps))
            lost = at * WINDOWS // steps
            losses = [round(2.3 - 0.01 * i, 4) for i in range(lost)] + [None] * (WINDOWS - lost)
            return {"seed": seed, "diverged_at": at, "correct": images // 10, "total": images,
                    "loss": None, "progress": losses}  # fmt: skip
        error = min(skill * (1 + off**2) * np.exp(random.normal(0, 0.04)), 0.9)
        times = (np.arange(WINDOWS) + 0.5) / WINDOWS
        curve = 2.2 * np.exp(-times * 40 / (1 + off**2)) + 4 * error / (0.4 + times)
        curve *= np.exp(random.normal(0, 0.03, WINDOWS))
        return {
            "seed": seed,
            "diverged_at": 0,
            "correct": int(images * (1 - error)),
            "total": images,
            "loss": round(3 * error, 4),
            "progress": [round(float(value), 4) for value in curve],
        }

    low, high = default / 30, default * 30
    rates = low * (high / low) ** ((np.arange(trials) * 0.618034 + random.random()) % 1)
    tried = [
        {"values": {"learning_rate": float(f"{rate:.4g}")}} | run(rate, 0, 5000) for rate in rates
    ]
    best = max(range(trials), key=lambda index: tried[index]["correct"])
    return with_digest(
        {
            "protocol": 1,
            "track": track,
            "variant": variant,
            "optimizer": optimizer,
            "reference": "arXiv 1711.05101",
            "command": f"jaxcnn arena {track} --optimizers {optimizer}",
            "settings": {"dataset": track.split("-")[0], "epochs": 1, "batch_size": 64,
                         "steps": 60 * len(track), "validation": 5000, "trials": trials,
                         "seeds": seeds},
            "code": "0123456789abcdef",
            "versions": {"jax": "0.10.2", "optax": "0.2.8"},
            "device": "a processor",
            "space": {"learning_rate": [low, high, "log"]},
            "extended": [],
            "at_edge": ["learning_rate"] if random.random() < 0.1 else [],
            "trials": tried,
            "best": best,
            "final": [run(rates[best], seed, total) for seed in range(1, seeds + 1)],
            "untuned": [run(default, seed, total) for seed in range(1, seeds + 1)],
        }
    )  # fmt: skip


def speed(optimizers: Sequence[str]) -> dict[str, Any]:
    """What a track's speed.json says."""
    random = np.random.default_rng(0)
    return {
        "device": "a processor",
        "optimizers": {
            name: {
                "images_per_second": 40_000 / (1 if name == "sgd" else 1 + random.exponential(0.3)),
                "state_bytes": 830_000 * (1 if name == "sgd" else int(random.integers(1, 4))),
            }
            for name in optimizers
        },
    }


def simple(optimizer: str, accuracies: Sequence[float], **fields: Any) -> dict[str, Any]:
    """An entry with given accuracies on the test images, by seed from 1, and otherwise the same."""
    runs = [
        {"seed": seed, "diverged_at": 0, "correct": round(10_000 * accuracy), "total": 10_000,
         "loss": 0.1, "progress": [2.0, 1.0, 0.5, 0.25]}
        for seed, accuracy in enumerate(accuracies, 1)
    ]  # fmt: skip
    trials = [{"values": {"learning_rate": 0.1}, **run} for run in runs]
    return {
        "protocol": 1, "track": "mnist", "variant": "standard", "optimizer": optimizer,
        "reference": "", "command": "", "settings": {"steps": 400}, "versions": {}, "device": "",
        "space": {"learning_rate": [0.01, 1.0, "log"]}, "extended": [], "at_edge": [],
        "trials": trials, "best": 0, "final": runs, "untuned": [],
    } | fields  # fmt: skip
