"""`jaxcnn doctor`: whether this machine and the jax on it compute what they should."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data import tfds
from jaxcnn.data.augment import make_normalize
from jaxcnn.devices import environment
from jaxcnn.errors import CACHE_REMEDY, ReadError, UserError, describe, writing
from jaxcnn.networks.cpu import library
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.recipes.recipe import NetworkName
from jaxcnn.storage import atomic, compilation, document
from jaxcnn.storage.atomic import cache_root
from jaxcnn.train import setup, steps
from jaxcnn.train.state import TrainState, init_state

_OUTCOME = "doctor.json"

_CALLS = 200
_BATCH = 16  # images
# How far a step may be from float64, as a share of how far it moves. In float32 about one in a
# million relus and pools decides otherwise, which changes a gradient by the root of that, 1e-3.
# Accelerators round products to 11 bits by default (TensorFloat-32): one in a thousand, 3e-2.
# Whatever is wrong shows in the first digits.
_FAR, _FAR_ON_ACCELERATORS = 1e-2, 1e-1


@dataclass(frozen=True)
class Finding:
    """What an examination came to.

    Attributes:
        what: was examined.
        sound: whether it is as it should be.
        seen: in words, with the remedy where it is not.
    """

    what: str
    sound: bool
    seen: str


def examine(data_dir: str = "", archive_dir: str = "") -> Iterator[Finding]:
    """Examines the devices, the training steps, the compiler and the folders, one by one.

    Args:
        data_dir: where TFDS keeps prepared data sets; where it does by default if empty.
        archive_dir: of official archives; that of the environment if empty.
    """
    yield from map(_device, jax.local_devices())
    for network in get_args(NetworkName):
        yield from _steps(network)
    yield _reduction()
    yield _programs()
    for name in PROBLEMS:
        yield _data(name, data_dir, archive_dir)
    yield _kernels()


def _device(device: jax.Device) -> Finding:
    """Whole numbers, which every device multiplies and adds without rounding."""
    left, right = np.random.default_rng(0).integers(-8, 9, (2, 256, 256)).astype(np.float32)
    product = np.asarray(jax.device_put(left, device) @ jax.device_put(right, device))
    sound = np.array_equal(product, left @ right)
    seen = "multiplies matrices right" if sound else "multiplies matrices WRONG: do not use it"
    return Finding(f"{device.device_kind} {device.id}", sound, seen)


def _steps(network: NetworkName) -> Iterator[Finding]:
    """The step as it trains, against one operation after the other in float64, and itself."""
    # Without what is drawn: float64 draws other numbers.
    recipe = named.recipe(network, "reference").replace(dropout=0.0, augment="none")
    tx = optax.sgd(0.1)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (_BATCH, *recipe.image_shape)).astype(np.uint8),
        "label": rng.integers(0, 10, _BATCH).astype(np.int32),
    }
    model = setup.make_model(recipe)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: init_state(key, model, tx, recipe.image_shape), key)

    def weights(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        """Random kernels of about their usual size; scales and variances of one, no biases."""
        name = str(getattr(path[-1], "key", ""))
        if name == "kernel":
            scale = np.prod(leaf.shape[:-1]) ** -0.5
            return (rng.standard_normal(leaf.shape) * scale).astype(leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    start = jax.tree_util.tree_map_with_path(weights, shapes.replace(key=None)).replace(key=key)
    normalize = make_normalize(recipe.mean, recipe.std)
    step = steps.make_train_step(model, tx, normalize=normalize)

    def moved(step: Callable[..., Any], start: TrainState) -> list[np.ndarray]:
        """By how much a step changes each array."""
        before = jax.tree.leaves(start.variables)  # the state is donated
        after, _ = step(jax.tree.map(jnp.array, start), batch)
        after = jax.tree.leaves(after.variables)
        return [
            np.asarray(b, np.float64) - np.asarray(a) for a, b in zip(before, after, strict=True)
        ]

    first = moved(step, start)
    with jax.enable_x64(True), jax.disable_jit(), jax.numpy_dtype_promotion("standard"):
        exact = model.clone(dtype=jnp.float64, staged=False)
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), start.variables)
        wide = start.replace(**double)
        judge = moved(steps.make_train_step(exact, tx, normalize=normalize), wide)
    off = _norm([a - b for a, b in zip(first, judge, strict=True)]) / _norm(judge)
    far = _FAR if jax.default_backend() == "cpu" else _FAR_ON_ACCELERATORS
    sound = bool(off < far)
    seen = f"{off:.1e} of its length from float64, one operation after the other"
    if not sound:
        seen += f", more than {far:.0e}: take another jax, or another device (JAX_PLATFORMS=cpu)"
    yield Finding(f"training step, {recipe.title}", sound, seen)

    digits = [array.tobytes() for array in first]
    other = sum([a.tobytes() for a in moved(step, start)] != digits for _ in range(_CALLS))
    seen = f"{_CALLS} calls gave the same bits"
    if other:
        seen = (
            f"{other} of {_CALLS} calls gave other bits: runs cannot be repeated exactly here; try "
            "another jax, or one thread (taskset -c 0)"
        )
    yield Finding(f"repeated step, {recipe.title}", not other, seen)


def _norm(arrays: list[np.ndarray]) -> float:
    return float(sum((array**2).sum() for array in arrays)) ** 0.5


def reduces_right() -> bool:
    """Returns whether jax sums the squares of many small products right.

    On CPU jax 0.10.2 loses digits of a jitted, vmapped product of a matrix and a vector whose
    squares are added: https://github.com/jax-ml/jax/issues/39103.
    """
    rows = np.zeros((2**15 + 1, 3), np.float32)
    rows[-1, 0] = 2**15
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    return float(squares[-1]) == 2.0**30


def _reduction() -> Finding:
    sound = reduces_right()
    seen = "right"
    if not sound:
        seen = (
            f"WRONG, a known defect of jax {jax.__version__} (jax-ml/jax 39103): nothing here "
            "computes that, but an optimizer of your own may, with a norm for every example; take "
            "Python 3.12 and a newer jax for it"
        )
    return Finding("vmapped products, squared and added", sound, seen)


def warn(optimizers: Iterable[str], report: Callable[..., None]) -> None:
    """Reports defects of the installed jax that optimizers of the user's own may meet.

    Args:
        optimizers: by name.
        report: called with a line of text and a style.
    """
    own = [name for name in optimizers if optimizer_defaults.is_own(name)]
    if own and not (found := _reduction()).sound:
        report(f"{found.what}: {found.seen}", "bold red")


def _programs() -> Finding:
    """The cache of compiled programs, which jax only warns about."""
    what, folder = "compiled programs", compilation.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(2**20))
    except OSError as error:
        return Finding(what, False, f"{describe(error, folder)}: {CACHE_REMEDY}")
    entries = list(folder.glob("*-cache"))
    size = sum(path.stat().st_size for path in entries) / 2**20
    return Finding(what, True, f"{len(entries)} for this processor, {size:.0f} MiB in {folder}")


def _data(name: str, data_dir: str, archive_dir: str) -> Finding:
    what = f"data, {name}"
    try:
        prepared = tfds.find_prepared(name, data_dir)
    except UserError as error:
        return Finding(what, False, str(error))
    if prepared:
        return Finding(what, True, f"prepared in {prepared.folder}")
    where = archive_dir or os.environ.get("JAXCNN_ARCHIVE_DIR")
    source = f"from the archives in {where}" if where else "from a download"
    return Finding(what, True, f"not prepared; the first start does that, {source}")


def _kernels() -> Finding:
    try:
        used = library.in_use()
    except UserError as error:
        return Finding("kernels for CPU", False, str(error))
    if used:
        return Finding("kernels for CPU", True, f"compiled for this processor, {library.path()}")
    return Finding("kernels for CPU", True, "none in use, XLA computes the same")


def record(findings: list[Finding]) -> None:
    """Keeps what was found for the reports of runs on this machine.

    Raises:
        WriteError: it cannot be written.
    """
    path = cache_root() / _OUTCOME
    unsound = [finding.what for finding in findings if not finding.sound]
    content = {"machine": environment.machine(), "unsound": unsound}
    with writing(path, CACHE_REMEDY):
        path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(content).encode(), CACHE_REMEDY)


def outcome() -> str:
    """Returns in words what was found on this machine with these versions."""
    with contextlib.suppress(FileNotFoundError, ReadError, ValueError):
        content = document.read_json(cache_root() / _OUTCOME)
        document.check(content, {"machine": str, "unsound": [str]}, "it")
        if content["machine"] == environment.machine():
            return f"not sound: {', '.join(content['unsound'])}" if content["unsound"] else "sound"
    return "not examined, see jaxcnn doctor"
