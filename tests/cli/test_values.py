import sys
from pathlib import Path

import pytest

from jaxcnn.cli.values import check_range, parse_pairs, replace_fields, trust_optimizers
from jaxcnn.errors import UserError
from jaxcnn.recipes import named, optimizer_defaults


def test_pairs() -> None:
    found = parse_pairs("--x", ["a=1", "b=0.5", "c=text", "d=None", "e=f=g", "h="])
    assert found == {"a": 1, "b": 0.5, "c": "text", "d": None, "e": "f=g", "h": ""}
    for pair, message in (
        ("a", "--x takes key=value pairs, got 'a'"),
        ("1a=2", "--x takes key=value pairs, got '1a=2'"),
        ("a=1e999", "--x takes finite numbers, got 'a=1e999'"),
    ):
        with pytest.raises(UserError) as caught:
            parse_pairs("--x", [pair])
        assert str(caught.value) == message


def test_fields_are_named_as_flags() -> None:
    recipe = named.recipe("mnist", "fast")
    assert replace_fields(recipe, batch_size=5) == recipe.replace(batch_size=5)
    with pytest.raises(UserError, match=r"^--batch-size takes a whole number .*, got 0$"):
        replace_fields(recipe, batch_size=0)


def test_ranges() -> None:
    check_range("--x", 1, 1, 3)
    check_range("--x", 3, 1, 3)
    for value in (0, 4):
        with pytest.raises(UserError) as caught:
            check_range("--x", value, 1, 3)
        assert str(caught.value) == f"--x takes a whole number from 1 to 3, got {value}"


def test_user_defined_optimizers_are_trusted_and_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults._trusted", set())
    trust_optimizers(["sgd"])
    assert sys.path == before
    trust_optimizers(["sgd", "mine:make"])
    assert sys.path.pop() == str(tmp_path)
    assert optimizer_defaults.is_trusted("mine:make")
    assert not optimizer_defaults.is_trusted("sgd")
