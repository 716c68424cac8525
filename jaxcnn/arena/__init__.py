"""The arena: every optimizer, tuned alike and ranked with intervals."""

import lazy_loader

# The names are in __init__.pyi; each is imported when first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
