"""A trained network as a file that needs no jaxcnn: StableHLO, safetensors or ONNX.

Beside each file goes a model card, `FILE.md`, with the code that loads it.
"""

import functools
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

import jaxcnn
from jaxcnn.data.augment import make_normalize
from jaxcnn.deploy import card, onnx_graph
from jaxcnn.devices import environment
from jaxcnn.errors import UserError, as_path
from jaxcnn.networks import pytorch
from jaxcnn.storage import atomic
from jaxcnn.train import steps
from jaxcnn.train.trained import Trained

FormatName = Literal["stablehlo", "safetensors", "onnx"]

PLATFORMS = ("cpu", "cuda", "tpu")
_REMEDY = "give --out a path in a folder that is there, can be written and has room"


def check(form: str, path: str | os.PathLike[str]) -> Path:
    """Refuses what cannot be exported, before any work is done.

    Args:
        form: "stablehlo", "safetensors" or "onnx".
        path: of the file to be, which ends in a dot and the form.

    Returns:
        The path.

    Raises:
        UserError: there is no such form, a package that it needs is missing, or the path has
            another ending, is a folder, or lies in none.
    """
    path = as_path(path)
    if form not in get_args(FormatName):
        raise UserError(f"--format takes {', '.join(get_args(FormatName))}, got {form!r}")
    if path.suffix != f".{form}":
        raise UserError(f"--out {path} does not end in .{form}: give the file such a name")
    for taken in (path, card.beside(path)):
        if taken.is_dir():
            raise UserError(f"--out {path}: {taken} is a folder; {_REMEDY}")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: the folder {path.parent} is not there; {_REMEDY}")
    if form == "onnx":
        onnx_graph.load_onnx()
    return path


def write_export(
    network: Trained,
    form: FormatName,
    path: str | os.PathLike[str],
    *,
    chosen_by_test: bool = False,
) -> tuple[Path, Path]:
    """Writes a network and its model card, each whole or not at all; what is there is replaced.

    Args:
        network: as trained.
        form: of the file.
        path: of the file, which ends in a dot and the form.
        chosen_by_test: whether the checkpoint was chosen by its score on the test images.

    Returns:
        The paths of the file and of the card.

    Raises:
        UserError: see `check`.
        WriteError: it cannot be written.
    """
    path = check(form, path)
    content = {"stablehlo": stablehlo, "safetensors": safetensors, "onnx": onnx}[form](network)
    tool = describe(form)
    text = card.render(network, form, path.name, tool, chosen_by_test=chosen_by_test)
    atomic.write(path, content, _REMEDY)
    atomic.write(card.beside(path), text.encode(), _REMEDY)
    return path, card.beside(path)


def describe(form: FormatName) -> str:
    """Returns what a file of a form is and what writes it, as one clause."""
    ours = f"jaxcnn {jaxcnn.__version__}"
    if form == "stablehlo":
        platforms = ", ".join(PLATFORMS)
        return f"StableHLO for {platforms}, by jax.export of jax {jax.__version__} and {ours}"
    if form == "safetensors":
        return f"safetensors {version('safetensors')}, by {ours}"
    return f"ONNX of opset {onnx_graph.OPSET}, by {ours} with onnx {version('onnx')}"


def stablehlo(network: Trained) -> bytes:
    """Returns a network as `jax.export` serializes it, the weights inside.

    It maps uint8[b, H, W, C] pictures to float32[b, 10] logits for any b, on CPU, CUDA and TPU.
    Products are of float32 on each of them, where jax itself would take less by default.
    """
    from jax import export

    recipe = network.recipe
    predict = steps.make_predict(network.model, normalize=make_normalize(recipe.mean, recipe.std))
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *recipe.image_shape), np.uint8)
    with jax.default_matmul_precision("highest"):
        program = jax.jit(functools.partial(predict, network.variables))
        exported = export.export(program, platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def safetensors(network: Trained) -> bytes:
    """Returns the weights under the original's names and in PyTorch's layout."""
    from safetensors.numpy import save

    # "pt" is what Hugging Face's libraries look for.
    metadata = {"format": "pt", **_metadata(network)}
    return save(pytorch.to_state_dict(network.variables), metadata)


def onnx(network: Trained) -> bytes:
    """Returns the network as `jaxcnn.deploy.onnx_graph` builds it."""
    return onnx_graph.build(network.recipe, network.variables, _metadata(network))


def _metadata(network: Trained) -> dict[str, str]:
    """Returns what a file says of itself, as texts."""
    recipe = network.recipe
    said: dict[str, Any] = {
        "network": recipe.network,
        "class_names": recipe.class_names,
        "mean": recipe.mean,
        "std": recipe.std,
        "recipe": recipe.asdict(),
        "dataset": f"{network.run['dataset']} {network.run['dataset_version']}",
        "seed": network.run["seed"],
        "step": network.checkpoint.step,
        "versions": environment.versions(),
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in said.items()}
