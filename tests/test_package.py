import ast
import importlib
import importlib.metadata
import subprocess
import sys
from pathlib import Path

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
assert {"fit", "fit_many", "load_data", "recipe", "MnistCNN"} <= set(jaxcnn.__all__)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_attribute_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        jaxcnn.nothing  # noqa: B018


# Imports run downwards only: a package imports those before it.
LAYERS = (
    "errors recipes devices storage networks optim data train report study deploy cli __main__"
).split()


def imported(path: Path) -> set[str]:
    """The parts of jaxcnn that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxcnn":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcnn."):
            found.add(str(node.module).split(".")[1])
    return found


def test_imports_run_downwards() -> None:
    package = Path(jaxcnn.__file__).parent
    assert {path.stem for path in package.glob("[!_p]*")} == set(LAYERS) - {"__main__"}
    for path in package.rglob("*.py"):
        layer = path.relative_to(package).parts[0].removesuffix(".py")
        if layer != "__init__":
            allowed = LAYERS[: LAYERS.index(layer) + 1]
            assert imported(path) <= set(allowed), path


def test_packages_are_imported_without_jax() -> None:
    names = ["jaxcnn", "jaxcnn.networks.cpu", *(f"jaxcnn.{name}" for name in LAYERS[1:-1])]
    code = f"import sys, {', '.join(names)}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_is_there() -> None:
    for name in ["jaxcnn", *(f"jaxcnn.{layer}" for layer in LAYERS[1:-2])]:
        package = importlib.import_module(name)
        assert package.__doc__
        for exported in package.__all__:
            assert getattr(package, exported) is not None
