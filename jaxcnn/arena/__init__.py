"""The arena: every optimizer, tuned alike, by one protocol (docs/arena.md)."""

import lazy_loader

# The names are in __init__.pyi; each is imported when first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
