"""What a result depends on beside the code: versions and the device."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

import jaxcnn

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "safetensors", "numpy", "tensorflow-datasets")
# What decides the numbers that are drawn, their precision and that of products.
_SETTINGS = {
    "jax_enable_x64": False,
    "jax_threefry_partitionable": True,
    "jax_default_prng_impl": "threefry2x32",
    "jax_random_seed_offset": 0,
    "jax_default_matmul_precision": None,
}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide a result, where installed."""
    found = {"python": platform.python_version(), "jaxcnn": jaxcnn.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def jax_settings() -> dict[str, Any]:
    """Returns jax's settings that change the numbers of a run, where they are not the usual ones.

    They come from variables such as JAX_ENABLE_X64, or from `jax.config`.
    """
    found = {name: getattr(jax.config, name, usual) for name, usual in _SETTINGS.items()}
    return {name: value for name, value in found.items() if value != _SETTINGS[name]}


def device() -> str:
    """Returns the device of the run as text, for example "cpu (AMD EPYC, 2 cores)"."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform} ({first.device_kind}, {jax.device_count()} devices)"
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"cpu ({name}, {os.cpu_count()} cores)"


def processor() -> str:
    """Returns a name for this machine's kind of processor, a part of the path of code for it."""
    can = _cpuinfo("flags") or _cpuinfo("Features")  # its instructions, x86 and ARM
    described = " ".join([_cpuinfo("model name") or platform.processor(), *sorted(can.split())])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


def _cpuinfo(name: str) -> str:
    """Returns what Linux says of the first processor; nothing elsewhere."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(name))
    return ""


def machine() -> str:
    """Returns the device and all versions in one line."""
    return ", ".join([device(), *(f"{name} {version}" for name, version in versions().items())])
