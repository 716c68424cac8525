import hashlib
from pathlib import Path

import optax
import pytest

from jaxcnn.train.identity import code_digest


def make(learning_rate: float) -> optax.GradientTransformation:
    """A user-defined optimizer."""
    return optax.sgd(learning_rate)


def test_the_digest_is_that_of_the_module_s_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults.is_trusted", lambda name: True)
    expected = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert code_digest("tests.train.test_identity:make") == expected
    assert code_digest("math:hypot") == hashlib.sha256().hexdigest()
