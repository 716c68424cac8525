"""Command lines: flags, console, progress, interrupts, and the commands."""

import lazy_loader

# The names are in __init__.pyi; each is imported when first used, so that --help waits for nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
