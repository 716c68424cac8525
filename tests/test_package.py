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
    "errors devices storage recipes networks optim data display train report landscape study "
    "arena deploy cli "
    "__main__"
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


PACKAGE = Path(jaxcnn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """All functions and methods of a module, nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def public_functions(tree: ast.AST) -> list[ast.FunctionDef]:
    """The functions of a module and the methods of its classes that have no leading underscore."""
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)]
    found = [node for scope in scopes for node in scope.body if isinstance(node, ast.FunctionDef)]
    return [function for function in found if not function.name.startswith("_")]


def parameters(function: ast.FunctionDef) -> set[str]:
    """The named parameters of a function, without self and cls."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    return {parameter.arg for parameter in named} - {"self", "cls"}


def test_functions_fit_a_screen_and_files_stay_short() -> None:
    long = []
    for path in FILES:
        text = path.read_text()
        if text.count("\n") > 350:
            long.append(f"{path}: {text.count(chr(10))} lines")
        for function in functions(ast.parse(text)):
            lines = (function.end_lineno or 0) - function.lineno + 1
            if lines > 80:
                long.append(f"{path}:{function.lineno} {function.name}: {lines} lines")
    assert long == []


def test_public_functions_document_their_parameters() -> None:
    """Those with two or more: each is named under `Args:`, or there is a reference to where."""
    undocumented = []
    for path in FILES:
        for function in public_functions(ast.parse(path.read_text())):
            names, docstring = parameters(function), ast.get_docstring(function) or ""
            _, found, text = docstring.partition("Args:\n")
            documented = (
                {line.strip().split(":")[0] for line in text.splitlines()} if found else set()
            )
            if len(names) >= 2 and "see `" not in docstring.lower() and not names <= documented:
                missing = ", ".join(sorted(names - documented))
                undocumented.append(f"{path}:{function.lineno} {function.name}: {missing}")
    assert undocumented == []
