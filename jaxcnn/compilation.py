"""jax's persistent compilation cache, so that a second start is quick."""

import os

import jax

from jaxcnn.data import cache


def enable_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless jax was told another place."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache.root() / "xla"))
    # By default jax leaves out programs that compile in under a second, most of ours.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
