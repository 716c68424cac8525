"""Two small convolutional networks, trained by pure functions in JAX."""

import lazy_loader

__version__ = "0.1.0"

# The names are in __init__.pyi. Each is imported when first used, so that a command line prints its
# help without waiting for jax.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
