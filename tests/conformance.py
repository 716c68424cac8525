"""What every optimizer must do, and the table of those that do it.

    python -m tests.conformance --out docs/optimizers.md

A network with a convolution, BatchNorm and dropout learns where a stripe is, with every optimizer
of optax and optax.contrib and its default learning rate.
"""

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.optim.extra_args import NAMES, Normalized, accept_only, check_update
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.storage.arrays import deserialize_pytree, leaf_types, serialize_pytree
from jaxcnn.train import steps
from jaxcnn.train.state import init_state
from tests.stripes import striped_split

REPOSITORY = Path(__file__).parent.parent
SHAPE = (28, 28, 1)
STEPS = 40
RECIPE = named.recipe("mnist", "fast").replace(
    epochs=4, batch_size=32, schedule="constant", warmup=0.0, augment="none", dropout=0.1
)
# Parameters and a learning rate that are off by a thousandth move a run further than rounding does:
# sums of a few hundred terms are off by a few hundred times 6e-8 at most.
NUDGE = 1.001


class SmallCNN(nn.Module):
    """A network with all the layers that matter to an optimizer, quick to compile."""

    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.avg_pool(images, (2, 2), (2, 2))
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.1)(x.reshape(x.shape[0], -1), deterministic=not train)
        return nn.Dense(self.classes)(x)


def dataset() -> Dataset:
    """320 training and 64 test images."""
    train, test = striped_split(SHAPE, 320, 0), striped_split(SHAPE, 64, 1)
    return Dataset("mnist", "stripes", train, test, tuple("0123456789"))


@dataclass
class Finding:
    """What an optimizer was observed to do.

    Attributes:
        name: of the optimizer.
        needs: the extra arguments without which its update fails.
        averages: whether its evaluation parameters differ from its trained parameters.
        losses: means of every ten steps.
        compiled: number of programs that 40 steps in four calls took.
        restored: whether a saved and restored run is bit-identical to the uninterrupted one.
        mapped: float32[5, 4], mean losses of every ten steps of five runs at once: two seeds, each
            at the whole and half the learning rate, and the first once more, off by `NUDGE`. The
            first is the run above.
    """

    name: str
    needs: tuple[str, ...]
    averages: bool
    losses: list[float]
    compiled: int
    restored: bool
    mapped: np.ndarray


def examine(name: str, model: nn.Module | None = None) -> Finding:
    """Tests an optimizer, with `SmallCNN` or another network."""
    # By way of another optimizer, so that the recipe's own one has its defaults too.
    recipe = RECIPE.replace(optimizer="adam").replace(optimizer=name)
    data, model = dataset(), model or SmallCNN()
    batches = {
        "image": jnp.asarray(data.train.images).reshape(10, 32, *SHAPE),
        "label": jnp.asarray(data.train.labels).reshape(10, 32),
    }

    def make(key: jax.Array, **values: Any) -> tuple[Any, Any, Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*optimistic_adam.* is deprecated")
            tx = make_optimizer(recipe, STEPS, key=key, hyperparameters=values)
        train_step = steps.make_train_step(model, tx, normalize=make_normalize((0.13,), (0.31,)))
        return tx, init_state(key, model, tx, SHAPE), steps.make_train_chunk(train_step)

    tx, current, train_steps = make(jax.random.key(0))
    losses: list[float] = []
    content = b""
    for call in range(4):
        current, sums = train_steps(current, batches, np.int32(10))
        losses.append(float(sums["loss_sum"] / sums["count"]))
        if call == 2:
            content = serialize_pytree(current)
    saved = deserialize_pytree(content, current, leaf_types(current), Path("memory"))
    restored, _ = train_steps(saved, batches, np.int32(10))

    def run(key: jax.Array, rate: jax.Array, nudge: jax.Array) -> jax.Array:
        """A whole run as one function: the losses of its four calls."""
        tx, start, train_steps = make(key, learning_rate=nudge * rate)
        params = jax.tree.map(lambda leaf: nudge * leaf, start.params)
        start = start.replace(params=params, opt_state=tx.init(params))

        def call(current: Any, _: None) -> tuple[Any, jax.Array]:
            current, sums = train_steps(current, batches, np.int32(10))
            return current, sums["loss_sum"] / sums["count"]

        return jax.lax.scan(call, start, None, length=4)[1]

    keys = jnp.stack([jax.random.key(seed) for seed in (0, 0, 1, 1, 0)])
    rates = recipe.learning_rate * jnp.array([1, 0.5, 1, 0.5, 1])
    nudges = jnp.array([1, 1, 1, 1, NUDGE])
    return Finding(
        name=name,
        needs=needed(tx, current.params),
        averages=not equal(current.eval_variables["params"], current.params),
        losses=losses,
        compiled=train_steps._cache_size(),
        restored=equal(restored, current),
        mapped=np.asarray(jax.jit(jax.vmap(run))(keys, rates, nudges)),
    )


def needed(tx: Normalized, params: Any) -> tuple[str, ...]:
    """Returns the extra arguments without which an update cannot be traced."""
    found = []
    for name in NAMES:
        without = accept_only(tx, [other for other in NAMES if other != name])
        try:
            check_update(Normalized(*without), params)
        except UserError:
            found.append(name)
    return tuple(found)


def equal(tree: Any, other: Any) -> bool:
    """Whether two pytrees are bit-identical."""
    pairs = zip(jax.tree.leaves(_raw(tree)), jax.tree.leaves(_raw(other)), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def _raw(tree: Any) -> Any:
    def raw(leaf: Any) -> Any:
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if key else leaf

    return jax.tree.map(raw, tree)


# Around the generated part of the page.
START, END = "<!-- table -->\n", "<!-- end of table -->\n"
SECTION = """
| optimizer | learning rate | weight decay | needs | evaluated parameters | losses |
| --- | --- | --- | --- | --- | --- |
{rows}

Refused:

{refused}

"""


def table(findings: list[Finding]) -> str:
    """Returns the generated part of the page."""
    rows = []
    for found in findings:
        defaults = optimizer_defaults.get(found.name)
        cells = (
            found.name,
            f"{defaults.learning_rate:g}",
            f"{defaults.weight_decay:g}",
            ", ".join(f"`{name}`" for name in found.needs) or "none",
            "averaged" if found.averages else "trained",
            f"{found.losses[0]:.2f}, {found.losses[-1]:.2f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    refused = [
        f"- {name}: {defaults.refused}."
        for name, defaults in optimizer_defaults.OPTIMIZERS.items()
        if defaults.refused
    ]
    return SECTION.format(rows="\n".join(rows), refused="\n".join(refused))


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(optimizer_defaults.OPTIMIZERS))
    flags = parser.parse_args()
    findings = []
    for name, defaults in optimizer_defaults.OPTIMIZERS.items():
        if name in flags.only and not defaults.refused:
            findings.append(examine(name))
            sys.stdout.write(f"{findings[-1]}\n")
    before, _, rest = flags.out.read_text().partition(START)
    _, _, after = rest.partition(END)
    flags.out.write_text(before + START + table(findings) + END + after)


if __name__ == "__main__":
    main()
