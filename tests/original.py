"""One problem for both frameworks: the original's networks on numpy-seeded weights and batches.

`measure_pytorch` and `measure_jaxcnn` return the same named arrays, in PyTorch's layout. Where
PyTorch is not installed, jaxcnn's are compared with recorded digests of what PyTorch computes in
float64. They are made by

    python -m tests.original

Rounding must not decide which pixel wins a pool or passes a relu: one such flip changes gradients
by 1e-3, in PyTorch's float32 against its own float64 too. So the script chooses the batch of every
step such that each decision is further away than `CLEARANCE` times what float32 is seen to be off.
The record holds the seeds of these batches.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import make_normalize
from jaxcnn.networks import pytorch
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.networks.inspect import feature_maps
from jaxcnn.train import steps
from jaxcnn.train.state import TrainState

RECORD = Path(__file__).with_suffix(".json")
BATCH_SIZE = 4  # of the original's CIFAR-10 recipe
STEPS = 20
LEARNING_RATE = 0.001  # the reference recipe's
CLEARANCE = 8.0
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
# Height and width of the maps that each BatchNorm sees.
BATCH_NORM_SIDES = {1: 32, 2: 32, 3: 32, 4: 16, 5: 8}

Arrays = dict[str, np.ndarray]


def model(network: str) -> nn.Module:
    """The network without dropout, whose draws cannot agree."""
    return {"mnist": MnistCNN, "cifar10": Cifar10CNN}[network](dropout_rate=0.0)


def weights(network: str) -> Arrays:
    """A state dict.

    A third of BatchNorm's scales are negative. The biases after the third convolution of CIFAR-10
    keep its relu from silencing whole channels, whose tiny variance would blow up rounding; those
    of BatchNorm, larger than PyTorch's zeros, leave fewer values near a relu's edge.
    """
    return dict(_weights(network))


@functools.cache
def _weights(network: str) -> Arrays:
    random = np.random.RandomState(107)  # frozen: the same numbers with every version of NumPy
    images = jax.ShapeDtypeStruct((1, *SHAPES[network]), jnp.float32)
    blank = jax.eval_shape(model(network).init, jax.random.key(0), images)
    names = pytorch.to_state_dict(jax.tree.map(lambda leaf: np.zeros(leaf.shape), blank))
    made: Arrays = {}
    for name in sorted(names):
        shape = names[name].shape
        bound = np.sqrt(1 / max(1, np.prod(shape[1:], dtype=int)))  # PyTorch's default
        low, high = (-bound, bound) if len(shape) > 1 else (-0.1, 0.1)
        norm = name.startswith("batch_norm")
        if norm:
            low, high = {
                "weight": (0.25, 0.75),
                "bias": (0.2, 1.0),
                "running_mean": (-0.1, 0.1),
                "running_var": (0.02, 0.06),
            }.get(name.split(".")[1], (0.0, 0.0))
        if (network, name) == ("cifar10", "conv3.bias"):
            low, high = 0.3, 0.8
        if not name.endswith("num_batches_tracked"):
            made[name] = random.uniform(low, high, shape).astype(np.float32)
        if norm and name.endswith("weight"):
            made[name][::3] *= -1
    return made


def record(network: str) -> dict[str, Any]:
    """What was recorded: `seeds` of the batches, their `clearance`, `digests` and `scales`."""
    return json.loads(RECORD.read_text())["networks"][network]


def batches(
    network: str, seeds: Sequence[int] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of uint8[B, H, W, C] images and int32[B] labels, one for each step.

    Args:
        network: "mnist" or "cifar10".
        seeds: of the batches; default: those recorded.
    """
    return [_batch(network, seed) for seed in seeds or record(network)["seeds"]]


def _batch(network: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(seed)
    height, width, channels = SHAPES[network]
    # Coarse squares with some noise: nearer to photographs than noise alone, and no two pixels tie
    # in a pool.
    coarse = random.randint(30, 226, (BATCH_SIZE, height // 4, width // 4, channels))
    fine = random.randint(-30, 30, (BATCH_SIZE, height, width, channels))
    images = (coarse.repeat(4, axis=1).repeat(4, axis=2) + fine).astype(np.uint8)
    return images, random.randint(0, 10, BATCH_SIZE).astype(np.int32)


def measure_jaxcnn(network: str) -> Arrays:
    """What jaxcnn computes, under PyTorch's names and in its layout."""
    variables = pytorch.load_state_dict(weights(network))
    normalize = make_normalize((0.1307,), (0.3081,))
    net, data = model(network), batches(network)
    images = jnp.asarray(data[0][0])

    @jax.jit
    def evaluate(images: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        x = normalize(images)
        maps = feature_maps(net, variables, x) if network == "mnist" else {}
        return net.apply(variables, x), maps

    @jax.jit
    def train_logits(images: jax.Array) -> jax.Array:
        return net.apply(variables, normalize(images), train=True, mutable=["batch_stats"])[0]

    logits, maps = evaluate(images)
    measured: Arrays = {"eval_logits": logits, "train_logits": train_logits(images)}
    for name, value in maps.items():
        measured[f"maps/{name}"] = np.asarray(value).transpose(0, 3, 1, 2)
    tx = optax.sgd(LEARNING_RATE, momentum=0.9)
    current = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(tx.init)(variables["params"]),
        key=jax.random.key(0),
    )
    train_step = steps.make_train_step(net, tx, normalize=normalize)
    for number, (step_images, step_labels) in enumerate(data):
        current, metrics = train_step(
            current, {"image": jnp.asarray(step_images), "label": jnp.asarray(step_labels)}
        )
        if number == 0:
            measured["loss"] = metrics["loss_sum"] / BATCH_SIZE
            trace = current.opt_state[0].trace  # after one step of momentum: the gradient
            gradients = pytorch.to_state_dict({**current.variables, "params": trace})
            measured |= {f"grad/{k}": v for k, v in gradients.items() if k in trained(network)}
            measured |= _statistics(network, pytorch.to_state_dict(current.variables))
    after = pytorch.to_state_dict(current.variables)
    measured |= {f"after/{k}": v for k, v in after.items() if k in trained(network)}
    return {name: np.asarray(value) for name, value in measured.items()}


def _statistics(network: str, after: Arrays) -> Arrays:
    """BatchNorm's running statistics after a step, as PyTorch keeps them."""
    before, found = weights(network), {}
    for name, value in after.items():
        if name.endswith("running_var"):  # Flax's biased variance, PyTorch's unbiased one
            n = BATCH_SIZE * BATCH_NORM_SIDES[int(name[len("batch_norm")])] ** 2
            kept = 0.9 * before[name]
            found[f"stats/{name}"] = kept + (value - kept) * n / (n - 1)
        elif name.endswith("running_mean"):
            found[f"stats/{name}"] = value
    return found


class Peer:
    """A PyTorch network in training, with what its relus and pools see.

    Attributes:
        net: the network.
        seen: after `logits`, pairs of "relu" or "pool" and the tensor that it was given.
    """

    def __init__(self, network: str, dtype: str) -> None:
        import torch

        from benchmarks.pytorch_networks import NETWORKS

        self.dtype = getattr(torch, dtype)
        self.net = NETWORKS[network](dropout_rate=0.0)
        self.net.load_state_dict({k: torch.from_numpy(v) for k, v in weights(network).items()})
        self.net.to(self.dtype)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=LEARNING_RATE, momentum=0.9)
        self.seen: list[tuple[str, Any]] = []

    def images(self, images: np.ndarray) -> Any:
        """Normalised images in PyTorch's layout."""
        import torch

        x = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.dtype)
        return (x / 255 - 0.1307) / 0.3081

    def logits(self, images: np.ndarray) -> Any:
        """A forward pass in training mode."""
        self.seen.clear()
        with self._watched():
            return self.net.train()(self.images(images))

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        from torch.nn import functional

        def watch(kind: str, function: Any) -> Any:
            def run(x: Any, *args: Any) -> Any:
                self.seen.append((kind, x.detach().clone()))
                return function(x, *args)

            return run

        relu, pool = watch("relu", functional.relu), watch("pool", functional.max_pool2d)
        with mock.patch.multiple(functional, relu=relu, max_pool2d=pool):
            yield

    def train(self, images: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """A whole step; returns logits and loss. Leaves the gradients in the parameters."""
        import torch

        self.optimizer.zero_grad()
        logits = self.logits(images)
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        loss.backward()
        self.optimizer.step()
        return logits.detach(), loss.detach()


def measure_pytorch(
    network: str, dtype: str = "float64", seeds: Sequence[int] | None = None
) -> Arrays:
    """What PyTorch computes; the seeds are those of `batches`."""
    import torch

    peer, data = Peer(network, dtype), batches(network, seeds)
    with torch.no_grad():
        images = peer.images(data[0][0])
        measured = {"eval_logits": peer.net.eval()(images)}
        if network == "mnist":
            maps = zip(("conv1", "conv2"), peer.net.feature_maps(images), strict=True)
            measured |= {f"maps/{name}": value for name, value in maps}
    for step, (images, labels) in enumerate(data):
        logits, loss = peer.train(images, labels)
        if step == 0:
            measured |= {"train_logits": logits, "loss": loss}
            measured |= {f"grad/{name}": p.grad.clone() for name, p in peer.net.named_parameters()}
            measured |= {
                f"stats/{name}": value.clone()
                for name, value in peer.net.named_buffers()
                if name.endswith(("running_mean", "running_var"))
            }
    measured |= {f"after/{name}": p.detach() for name, p in peer.net.named_parameters()}
    return {name: value.numpy() for name, value in measured.items()}


def clearance(exact: Peer, rounded: Peer) -> float:
    """How close the decisions of the last forward pass are, in units of rounding.

    A relu decides about a value's distance from zero, a pool about that of the largest two in a
    square; rounding is the most that the same distance is off in float32, in the same channel.
    Values that tie exactly, which a relu before the pool makes zero, decide nothing.

    Args:
        exact: in float64, after `logits` of some images.
        rounded: in float32, after the same.
    """
    import torch

    least = []
    for (kind, x), (_, y) in zip(exact.seen, rounded.seen, strict=True):
        distance, error = x.abs(), (x - y).abs()
        if kind == "pool":
            corners, errors = (
                torch.stack([z[..., a::2, b::2] for a in (0, 1) for b in (0, 1)])
                for z in (x, x - y)
            )
            largest = corners.amax(0)
            distance = largest - torch.where(corners == largest, -torch.inf, corners).amax(0)
            error = errors.amax(0) - errors.amin(0)
        axes = (0, 2, 3) if x.ndim == 4 else (0, 1)
        least.append((distance.amin(axes) / error.amax(axes)).min().item())
    return min(least)


def search(network: str) -> tuple[list[int], float]:
    """The first seeds whose batches leave each decision of every step `CLEARANCE`; the least."""
    peers = Peer(network, "float64"), Peer(network, "float32")
    seeds, least = [-1], np.inf
    for _ in range(STEPS):
        for seed in itertools.count(seeds[-1] + 1):
            images, labels = _batch(network, seed)
            for peer in peers:
                peer.logits(images)
            found = clearance(*peers)
            if found >= CLEARANCE:
                break
        for peer in peers:
            peer.train(images, labels)
        seeds.append(seed)
        least = min(least, found)
    return seeds[1:], least


def digest(arrays: Arrays) -> dict[str, list[float]]:
    """Arrays themselves if small, else their projections on four random directions."""
    digests = {}
    for name, array in arrays.items():
        values = np.asarray(array, np.float64).ravel()
        if values.size > 200:
            directions = np.random.RandomState(307).standard_normal((4, values.size))
            values = directions @ values / np.linalg.norm(directions, axis=1)
        digests[name] = values.tolist()
    return digests


def scale(network: str, name: str, arrays: Arrays) -> float:
    """What an error in an array is measured against: its norm.

    A bias before BatchNorm has no effect on the loss, so its gradient is zero but for rounding; its
    error is measured against the gradient of the kernel beside it.
    """
    if network == "cifar10" and name in {f"grad/conv{layer}.bias" for layer in (1, 2, 4, 5)}:
        name = name.replace("bias", "weight")
    return float(np.linalg.norm(arrays[name]))


def trained(network: str) -> set[str]:
    """The names of the parameters."""
    return {name for name in weights(network) if "running" not in name}


def main() -> None:
    """Chooses the batches and records what PyTorch computes."""
    import torch

    content: dict[str, Any] = {"torch": torch.__version__, "networks": {}}
    for network in SHAPES:
        seeds, least = search(network)
        arrays = measure_pytorch(network, seeds=seeds)
        content["networks"][network] = {
            "seeds": seeds,
            "clearance": least,
            "digests": digest(arrays),
            "scales": {name: scale(network, name, arrays) for name in arrays},
        }
    RECORD.write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
