"""Deployment: exported networks with a model card, predictions for own images, pages."""

import lazy_loader

# The names are in __init__.pyi; each is imported when first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
