"""Export of a trained network to a file that needs no jaxcnn: StableHLO, safetensors or ONNX.

A model card, `FILE.md`, is written beside each file, with the code that loads it.
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
from jaxcnn.deploy import onnx_graph
from jaxcnn.deploy.card import card_path, render_card
from jaxcnn.devices import environment
from jaxcnn.errors import UserError, as_path
from jaxcnn.networks import pytorch
from jaxcnn.storage import atomic
from jaxcnn.train import steps
from jaxcnn.train.trained import Trained

FormatName = Literal["stablehlo", "safetensors", "onnx"]

PLATFORMS = ("cpu", "cuda", "tpu")
_REMEDY = "give --out a path in a folder that is there, can be written and has room"


def check_export(form: str, path: str | os.PathLike[str]) -> Path:
    """Refuses an export that is bound to fail, before any work is done.

    Args:
        form: "stablehlo", "safetensors" or "onnx".
        path: of the file to write, with the form as its suffix.

    Returns:
        The path.

    Raises:
        UserError: there is no such form, a package that it needs is missing, or the path has
            another suffix, is a folder, or its folder is missing.
    """
    path = as_path(path)
    if form not in get_args(FormatName):
        raise UserError(f"--format takes {', '.join(get_args(FormatName))}, got {form!r}")
    if path.suffix != f".{form}":
        raise UserError(f"--out {path} does not end in .{form}: give the file such a name")
    for taken in (path, card_path(path)):
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
    """Writes a network and its model card, each atomically, replacing existing files.

    Args:
        network: as trained.
        form: of the file.
        path: of the file, with the form as its suffix.
        chosen_by_test: whether the checkpoint was chosen by its accuracy on the test images.

    Returns:
        The paths of the file and of the card.

    Raises:
        UserError: see `check_export`.
        WriteError: a file cannot be written.
    """
    path = check_export(form, path)
    convert = {"stablehlo": to_stablehlo, "safetensors": to_safetensors, "onnx": to_onnx}[form]
    content = convert(network)
    tool = describe_export(form)
    text = render_card(network, form, path.name, tool, chosen_by_test=chosen_by_test)
    atomic.write(path, content, _REMEDY)
    atomic.write(card_path(path), text.encode(), _REMEDY)
    return path, card_path(path)


def describe_export(form: FormatName) -> str:
    """Returns the format of a file and the versions that write it, as a clause."""
    ours = f"jaxcnn {jaxcnn.__version__}"
    if form == "stablehlo":
        platforms = ", ".join(PLATFORMS)
        return f"StableHLO for {platforms}, by jax.export of jax {jax.__version__} and {ours}"
    if form == "safetensors":
        return f"safetensors {version('safetensors')}, by {ours}"
    return f"ONNX of opset {onnx_graph.OPSET}, by {ours} with onnx {version('onnx')}"


def to_stablehlo(network: Trained) -> bytes:
    """Returns a network with its weights as `jax.export` serializes it, for CPU, CUDA and TPU.

    It maps uint8[b, H, W, C] images to float32[b, classes] logits for any b. Its matrix products
    are in float32 on all platforms, where JAX's default precision on accelerators is lower.
    """
    from jax import export

    recipe = network.recipe
    # Kernels are compiled for this machine alone.
    model = network.model.clone(staged=False)
    predict = steps.make_predict(model, normalize=make_normalize(recipe.mean, recipe.std))
    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, *network.image_shape), np.uint8)
    with jax.default_matmul_precision("highest"):
        program = jax.jit(functools.partial(predict, network.variables))
        exported = export.export(program, platforms=PLATFORMS)(images)
    return bytes(exported.serialize())


def to_safetensors(network: Trained) -> bytes:
    """Returns the weights under the original's names and in PyTorch's layout."""
    from safetensors.numpy import save

    # Hugging Face's libraries require the format "pt".
    metadata = {"format": "pt", **_metadata(network)}
    return save(pytorch.to_state_dict(network.variables, network.image_shape), metadata)


def to_onnx(network: Trained) -> bytes:
    """Returns the network as an ONNX model, see `jaxcnn.deploy.onnx_graph`."""
    return onnx_graph.build_onnx(network, _metadata(network))


def _metadata(network: Trained) -> dict[str, str]:
    """Returns the metadata of a file; values other than strings in JSON."""
    recipe = network.recipe
    metadata: dict[str, Any] = {
        "network": recipe.network,
        "class_names": network.class_names,
        "mean": recipe.mean,
        "std": recipe.std,
        "recipe": recipe.asdict(),
        "dataset": f"{network.run['dataset']} {network.run['dataset_version']}",
        "seed": network.run["seed"],
        "step": network.checkpoint.step,
        "versions": environment.versions(),
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
