"""What a result depends on beside the code: versions and the device."""

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

import jaxcnn

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide a result, where installed."""
    found = {"python": platform.python_version(), "jaxcnn": jaxcnn.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device() -> str:
    """Returns what the run's arrays live on, "cpu (AMD EPYC, 2 cores)" say."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform} ({first.device_kind}, {jax.device_count()} devices)"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass  # not Linux
    return f"cpu ({name}, {os.cpu_count()} cores)"


def machine() -> str:
    """Returns the device and all versions in one line."""
    return ", ".join([device(), *(f"{name} {version}" for name, version in versions().items())])
