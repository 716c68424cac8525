"""Two small convolutional networks, trained by pure functions in JAX."""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "data",
    "ensemble",
    "models",
    "optimizers",
    "pytorch",
    "recipes",
    "state",
    "steps",
    "study",
    "training",
)

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    # Imported when first used: a command line must not wait for jax to print its help.
    if name in _MODULES:
        return importlib.import_module(f"jaxcnn.{name}")
    raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
