"""Files of PyTorch weights, `.pt` and `.safetensors`: mappings from names to tensors."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import UserError
from jaxcnn.storage import atomic


def read_weights(path: Path) -> Mapping[str, Any]:
    """Reads a file without executing any code in it.

    Args:
        path: of the file.

    Returns:
        What the file holds: NumPy arrays of a `.safetensors` file, and of the others the mapping
        that was saved, with PyTorch's tensors.

    Raises:
        UserError: there is no such file, its suffix is another one, it is damaged or holds more
            than plain tensors, or PyTorch is missing for a `.pt` file.
    """
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: give the path of a .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        # weights_only: a .pt file is a pickle, which could execute any code otherwise.
        content = _torch(path).load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # both libraries raise errors of their own kinds
        raise UserError(
            f"{path} is no complete {path.suffix} file of plain tensors "
            f"({type(error).__name__}): save the network's state_dict() again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dict: save the network's state_dict()")
    return content


def write_weights(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Writes a file atomically.

    Args:
        tensors: by name.
        path: of the file, whose suffix chooses the format.

    Raises:
        UserError: the suffix is another one, PyTorch is missing for a `.pt` file, or the file
            cannot be written.
    """
    _check_suffix(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save(tensors)
    else:
        torch, file = _torch(path), io.BytesIO()
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, file)
        content = file.getvalue()
    atomic.write(path, content, "give a folder that is there, can be written and has room")


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"{path} ends neither in .pt, .pth nor .safetensors: give it such a name")


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} needs PyTorch: pip install 'jaxcnn[torch]', or use a .safetensors file"
        ) from None
    return torch
