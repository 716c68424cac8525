import functools
import hashlib
import inspect
import math
from pathlib import Path
from typing import Any

import optax
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.train.identity import code_digest, identity
from tests import conformance


def make(learning_rate: float) -> optax.GradientTransformation:
    """A user-defined optimizer."""
    return optax.sgd(learning_rate)


def scaled(logits: Any, labels: Any, scale: float = 1.0) -> Any:
    """A user-defined loss."""
    return scale * optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def test_the_digest_is_that_of_the_module_s_source() -> None:
    expected = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    assert code_digest(make) == expected
    assert code_digest(functools.partial(make, 0.1)) == expected
    assert code_digest(math.hypot) == hashlib.sha256().hexdigest()


def test_of_a_script_only_the_function_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaled, "__module__", "__main__")
    expected = hashlib.sha256(inspect.getsource(scaled).encode()).hexdigest()
    assert code_digest(scaled) == expected


def test_a_loss_is_part_of_the_identity(tiny_mnist: Dataset, monkeypatch: Any) -> None:
    def run(**own: Any) -> dict[str, Any]:
        return identity(conformance.RECIPE, tiny_mnist, model=conformance.SmallCNN(), **own)

    assert not {"loss", "metrics", "start", "freeze"} & set(run())  # as before there were such
    losses = [scaled, functools.partial(scaled, scale=2.0), functools.partial(scaled, scale=3.0)]
    digests = [run(loss=loss)["loss"] for loss in losses]
    assert len(set(digests)) == 3
    assert digests == [run(loss=loss)["loss"] for loss in losses]
    assert run(metrics={"own": scaled})["metrics"] == {"own": digests[0]}
    # The same name with other code is another loss.
    monkeypatch.setattr("jaxcnn.train.identity.inspect.getsource", lambda _: "edited")
    assert run(loss=scaled)["loss"] != digests[0]
