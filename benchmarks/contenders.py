"""The contenders of the speed benchmarks: jaxcnn, and PyTorch in each of its fast configurations.

A contender trains a network for an epoch of `steps` batches: shuffling, normalization, forward and
backward pass, SGD with momentum, dropout; the images are on the device as uint8. Needs jax, flax,
optax, numpy and torch only.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import flax_networks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from pytorch_networks import NETWORKS
from torch.nn import functional

from jaxcnn.data import augment
from jaxcnn.data.dataset import Split
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.train import steps
from jaxcnn.train.feed import make_feed
from jaxcnn.train.state import init_state

Precision = Literal["float32", "tf32", "bfloat16"]

LEARNING_RATE = 1e-3
MOMENTUM = 0.9
MEAN, STD = 0.1307, 0.3081

SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
MODELS = {"mnist": MnistCNN, "cifar10": Cifar10CNN}

# Steps of a CUDA graph that holds several; the steps of a longer epoch are a multiple of it.
GRAPH_STEPS = 16


@dataclass(frozen=True)
class Task:
    """The training that is timed.

    Attributes:
        network: "mnist" or "cifar10".
        batch_size: images per step.
        steps: steps per epoch.
        precision: of matrix products and convolutions; with bfloat16, of all activations.
    """

    network: str
    batch_size: int
    steps: int
    precision: Precision = "float32"

    def split(self) -> Split:
        """Generates random images and labels, on whose content the speed does not depend."""
        rng = np.random.default_rng(0)
        size = self.batch_size * self.steps
        images = rng.integers(0, 256, (size, *SHAPES[self.network]), np.uint8)
        return Split(images, rng.integers(0, 10, size, np.int32))


Epoch = Callable[[], None]
"""Trains an epoch and returns when the device has finished."""


def _matmul_precision(task: Task) -> AbstractContextManager[None]:
    """Returns a context in which JAX multiplies float32 matrices as the task asks for."""
    precision = "tensorfloat32" if task.precision == "tf32" else "float32"
    return jax.default_matmul_precision(precision)


def jaxcnn(task: Task) -> Epoch:
    """Trains as `jaxcnn.fit` does: many steps in one program."""
    dtype = jnp.bfloat16 if task.precision == "bfloat16" else jnp.float32
    model = MODELS[task.network](dtype=dtype)
    tx = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    source = make_feed("device", task.split(), task.batch_size, jax.random.key(0))
    normalize = augment.make_normalize((MEAN,), (STD,))
    train_steps = steps.make_train_chunk(steps.make_train_step(model, tx, normalize=normalize))
    train_state = init_state(jax.random.key(1), model, tx, SHAPES[task.network])
    number = 0

    def epoch() -> None:
        nonlocal train_state, number
        number += 1
        metrics: Any = None
        with _matmul_precision(task):
            for chunk in source.epoch(number):
                train_state, metrics = train_steps(
                    train_state, chunk.batches, np.int32(chunk.count)
                )
        jax.block_until_ready(metrics)

    return epoch


def flax(task: Task) -> Epoch:
    """Trains as most people write it in Flax: plain layers, and a jitted step at a time."""
    dtype = jnp.bfloat16 if task.precision == "bfloat16" else jnp.float32
    model = flax_networks.NETWORKS[task.network](dtype=dtype)
    tx = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    split = task.split()
    images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)
    variables = model.init(jax.random.key(1), jnp.zeros((1, *SHAPES[task.network])))
    state = (variables["params"], variables.get("batch_stats", {}))
    train_state = (*state, tx.init(variables["params"]), jax.random.key(2))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, indices: jax.Array) -> Any:
        params, batch_stats, opt_state, key = state
        key, dropout = jax.random.split(key)
        batch = (images[indices] / 255 - MEAN) / STD

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, changed = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(jnp.float32), labels[indices]
            )
            return losses.mean(), changed.get("batch_stats", {})

        (_, changed), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), changed, opt_state, key

    rng = np.random.default_rng(0)

    def epoch() -> None:
        nonlocal train_state
        with _matmul_precision(task):
            for indices in rng.permutation(len(labels)).reshape(task.steps, task.batch_size):
                train_state = step(train_state, indices)
        jax.block_until_ready(train_state)

    return epoch


class _Torch:
    """A network, its optimizer and its data on the device, and one step of training.

    Args:
        task: the training.
        channels_last: whether images and weights have the channels-last memory format.
        fused: whether SGD updates all parameters in one kernel.
        mode: of `torch.compile`; not compiled if empty.
    """

    def __init__(
        self, task: Task, *, channels_last: bool = False, fused: bool = False, mode: str = ""
    ) -> None:
        self.task = task
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = task.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = task.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.net = NETWORKS[task.network]().to(self.device, memory_format=layout)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=fused
        )
        split = task.split()
        images = torch.from_numpy(split.images).to(self.device).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=layout)
        self.labels = torch.from_numpy(split.labels).to(self.device).long()
        self.loss = torch.compile(self._loss, mode=mode) if mode else self._loss

    def _loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        bfloat16 = self.task.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            logits = self.net((images.float() / 255 - MEAN) / STD)
        return functional.cross_entropy(logits.float(), labels)

    def step(self, indices: torch.Tensor) -> None:
        """Trains on the images at some positions, int64[B]."""
        self.optimizer.zero_grad()
        self.loss(self.images[indices], self.labels[indices]).backward()
        self.optimizer.step()

    def order(self) -> torch.Tensor:
        """Returns a random order of the images, int64[N]."""
        return torch.randperm(len(self.labels), device=self.device)

    def wait(self) -> None:
        """Waits until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def pytorch(task: Task, **options: Any) -> Epoch:
    """Trains with PyTorch, each step called from Python; `options` are those of `_Torch`."""
    trainer = _Torch(task, **options)

    def epoch() -> None:
        for indices in trainer.order().split(task.batch_size):
            trainer.step(indices)
        trainer.wait()

    return epoch


def pytorch_graph(task: Task, steps_a_graph: int = 1, mode: str = "") -> Epoch:
    """Trains with PyTorch, whole steps captured in a CUDA graph that Python replays.

    Args:
        task: the training.
        steps_a_graph: number of steps that a graph holds.
        mode: of `torch.compile`; not compiled if empty.
    """
    trainer = _Torch(task, channels_last=True, fused=True, mode=mode)
    steps_a_graph = min(steps_a_graph, task.steps)
    shape = (steps_a_graph, task.batch_size)
    indices = torch.zeros(shape, dtype=torch.long, device=trainer.device)

    def train() -> None:
        for row in indices:
            trainer.optimizer.zero_grad(set_to_none=False)
            trainer.loss(trainer.images[row], trainer.labels[row]).backward()
            trainer.optimizer.step()

    # The capture of a graph requires a warm-up on another stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train()

    def epoch() -> None:
        order = trainer.order()
        for rows in order.view(-1, *shape):  # an error if steps were left over
            indices.copy_(rows)
            graph.replay()
        trainer.wait()

    return epoch


def variants() -> dict[str, Callable[[Task], Epoch]]:
    """Returns the configurations of PyTorch that this machine can run, by name."""

    def configure(make: Callable[..., Epoch], **options: Any) -> Callable[[Task], Epoch]:
        return lambda task: make(task, **options)

    configurations = {
        "eager": configure(pytorch),
        "channels-last, fused SGD": configure(pytorch, channels_last=True, fused=True),
        "compile default": configure(pytorch, fused=True, mode="default"),
        "compile reduce-overhead": configure(pytorch, fused=True, mode="reduce-overhead"),
        "compile max-autotune": configure(pytorch, fused=True, mode="max-autotune"),
        "compile max-autotune, channels-last": configure(
            pytorch, channels_last=True, fused=True, mode="max-autotune"
        ),
    }
    if torch.cuda.is_available():
        graph_mode = "max-autotune-no-cudagraphs"
        configurations |= {
            "CUDA graph": configure(pytorch_graph),
            "CUDA graph, compile": configure(pytorch_graph, mode=graph_mode),
            f"CUDA graph of {GRAPH_STEPS} steps": configure(
                pytorch_graph, steps_a_graph=GRAPH_STEPS
            ),
            f"CUDA graph of {GRAPH_STEPS} steps, compile": configure(
                pytorch_graph, steps_a_graph=GRAPH_STEPS, mode=graph_mode
            ),
        }
    return configurations
