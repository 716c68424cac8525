import importlib.metadata
import subprocess
import sys

import pytest

import jaxcnn


def test_version_is_the_distribution_s() -> None:
    assert jaxcnn.__version__ == importlib.metadata.version("jaxcnn")


def test_modules_are_imported_when_first_used() -> None:
    code = """
import sys, jaxcnn
assert "jax" not in sys.modules
for name in jaxcnn.__all__:
    getattr(jaxcnn, name)
assert jaxcnn.data.load and jaxcnn.models.MnistCNN
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        jaxcnn.nothing  # noqa: B018
