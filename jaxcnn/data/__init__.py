"""Data sets in, batches out."""

from jaxcnn.data.dataset import Dataset, Split, load

__all__ = ["Dataset", "Split", "load"]
