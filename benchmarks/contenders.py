"""Everything that is timed against each other: jaxcnn, and PyTorch in every way known to be fast.

A contender trains a network for an epoch of `steps` batches: shuffle, normalise, forward, backward,
SGD with momentum, dropout; the images live on the device as uint8. Needs jax, flax, optax, numpy
and torch only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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

# Steps in a CUDA graph that holds several; longer epochs are a multiple of it.
GRAPH_STEPS = 16


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        network: "mnist" or "cifar10".
        batch_size: images a step.
        steps: of an epoch.
        precision: of products and convolutions; everything else is float32, but for bfloat16.
    """

    network: str
    batch_size: int
    steps: int
    precision: Precision = "float32"

    def split(self) -> Split:
        """Draws images and labels; speed does not depend on what they show."""
        rng = np.random.default_rng(0)
        size = self.batch_size * self.steps
        images = rng.integers(0, 256, (size, *SHAPES[self.network]), np.uint8)
        return Split(images, rng.integers(0, 10, size, np.int32))


# Trains an epoch and returns once the device has finished.
Epoch = Callable[[], None]


def jaxcnn(task: Task) -> Epoch:
    """What `fit` of jaxcnn does: many steps in one program."""
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
        with jax.default_matmul_precision(
            "tensorfloat32" if task.precision == "tf32" else "float32"
        ):
            for chunk in source.epoch(number):
                train_state, metrics = train_steps(
                    train_state, chunk.batches, np.int32(chunk.count)
                )
        jax.block_until_ready(metrics)

    return epoch


class _Torch:
    """A network, its optimizer and its data on the device, and one step of training."""

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
        self.optimizer.zero_grad()
        self.loss(self.images[indices], self.labels[indices]).backward()
        self.optimizer.step()

    def order(self) -> torch.Tensor:
        return torch.randperm(len(self.labels), device=self.device)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def pytorch(task: Task, **options: Any) -> Epoch:
    """PyTorch, a call from Python for every step."""
    trainer = _Torch(task, **options)

    def epoch() -> None:
        for indices in trainer.order().split(task.batch_size):
            trainer.step(indices)
        trainer.wait()

    return epoch


def pytorch_graph(task: Task, steps_a_graph: int = 1, mode: str = "") -> Epoch:
    """PyTorch with whole steps captured in a CUDA graph, which Python only replays."""
    trainer = _Torch(task, channels_last=True, fused=True, mode=mode)
    steps_a_graph = min(steps_a_graph, task.steps)
    shape = (steps_a_graph, task.batch_size)
    indices = torch.zeros(shape, dtype=torch.long, device=trainer.device)

    def train() -> None:
        for row in indices:
            trainer.optimizer.zero_grad(set_to_none=False)
            trainer.loss(trainer.images[row], trainer.labels[row]).backward()
            trainer.optimizer.step()

    # Warmed up on a stream of its own, as capturing demands.
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
        for rows in order.view(-1, *shape):  # an error where steps would be left over
            indices.copy_(rows)
            graph.replay()
        trainer.wait()

    return epoch


def variants() -> dict[str, Callable[[Task], Epoch]]:
    """Returns the ways of PyTorch that this machine can run, by name."""

    def way(make: Callable[..., Epoch], **options: Any) -> Callable[[Task], Epoch]:
        return lambda task: make(task, **options)

    ways = {
        "eager": way(pytorch),
        "channels-last, fused SGD": way(pytorch, channels_last=True, fused=True),
        "compile default": way(pytorch, fused=True, mode="default"),
        "compile reduce-overhead": way(pytorch, fused=True, mode="reduce-overhead"),
        "compile max-autotune": way(pytorch, fused=True, mode="max-autotune"),
        "compile max-autotune, channels-last": way(
            pytorch, channels_last=True, fused=True, mode="max-autotune"
        ),
    }
    if torch.cuda.is_available():
        graph_mode = "max-autotune-no-cudagraphs"
        ways |= {
            "CUDA graph": way(pytorch_graph),
            "CUDA graph, compile": way(pytorch_graph, mode=graph_mode),
            f"CUDA graph of {GRAPH_STEPS} steps": way(pytorch_graph, steps_a_graph=GRAPH_STEPS),
            f"CUDA graph of {GRAPH_STEPS} steps, compile": way(
                pytorch_graph, steps_a_graph=GRAPH_STEPS, mode=graph_mode
            ),
        }
    return ways
