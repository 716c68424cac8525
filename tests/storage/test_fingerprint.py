import functools
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import MnistCNN
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.storage import fingerprint
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("kind", np.typecodes["AllInteger"] + "?")
@pytest.mark.parametrize("value", [0, 1])
def test_a_whole_number_is_its_value(kind: str, value: int) -> None:
    for made in (np.dtype(kind).type(value), np.array(value, kind)):
        assert fingerprint.of(made) == value
        assert (
            json.dumps(fingerprint.of(made)) == ("true" if value else "false")
            if kind == "?"
            else str(value)
        )


@pytest.mark.parametrize("kind", "efd")
def test_a_number_is_its_value(kind: str) -> None:
    for value in (0.1, 1.0, 1e-5, -2.5):
        made = np.dtype(kind).type(value)
        assert fingerprint.of(made) == float(made)
    assert fingerprint.of(np.float32(0.1)) != fingerprint.of(0.1)
    assert fingerprint.of(jnp.float32(0.5)) == fingerprint.of(np.float64(0.5)) == 0.5
    assert fingerprint.of(jnp.bfloat16(0.5)) != fingerprint.of(jnp.bfloat16(0.25))


def closing_over(value: Any) -> Any:
    return lambda step: (step, value)


class Plain:
    def __init__(self, value: Any) -> None:
        self.value = value

    def method(self) -> None:
        """Does nothing."""


@dataclass
class Fields:
    value: Any


class Network(nn.Module):
    value: Any
    act: Any = nn.relu


# Of each row no two are equal, and each is equal to one that is made anew.
DIFFERENT: list[Any] = [
    lambda: [1, 2, "1", True, None, 1.5, math.inf, -math.inf, [1], {"1": 1}, {1: 2}],
    lambda: [1j, 2j, b"1", b"2", {1}, {2}, {1, 2}, frozenset((3, 4)), range(3), range(4)],
    lambda: [np.zeros(3), np.ones(3), np.zeros(3, int), np.zeros((3, 1)), jnp.zeros(3), "\udce9"],
    lambda: [jax.random.key(0), jax.random.key(1), jax.random.key(0, impl="rbg")],
    lambda: [jnp.float32, jnp.bfloat16, float, np.dtype("i4"), np.dtype("i8")],
    lambda: [nn.relu, nn.gelu, jnp.tanh, np.tanh, math.tanh, optax.sgd, print, jax.jit],
    lambda: [closing_over(1), closing_over(2), closing_over(nn.relu), closing_over([1, {2}])],
    lambda: [lambda: 1, lambda: 2, lambda a=1: a, lambda a=2: a],
    lambda: [functools.partial(pow, 2), functools.partial(pow, 3), functools.partial(max, 2)],
    lambda: [Plain(1), Plain(2), Plain(1).method, Plain(2).method, Fields(1), Fields(2)],
    lambda: [Network(1), Network(2), Network(1, nn.gelu), Network((1, 2))],
    lambda: [MnistCNN(), MnistCNN(dropout_rate=0.3), MnistCNN(dtype=jnp.bfloat16)],
    lambda: [optax.sgd(0.1), optax.sgd(0.2), optax.sgd(0.1, 0.9), optax.adam(0.1)],
    lambda: [
        optax.chain(optax.clip(c), optax.masked(optax.adamw(r), {"a": m}))
        for c in (1.0, 2.0)
        for r in (0.1, optax.cosine_decay_schedule(0.1, 10), optax.cosine_decay_schedule(0.1, 20))
        for m in (True, False)
    ],
    lambda: [nn.initializers.normal(0.1), nn.initializers.normal(0.2)],
    lambda: [jax.jit(closing_over(1)), jax.jit(closing_over(2))],
]


@pytest.mark.parametrize("make", DIFFERENT)
def test_equal_for_equal_values_and_another_one_for_others(make: Any) -> None:
    texts = [json.dumps(fingerprint.of(value), allow_nan=False) for value in make()]
    assert texts == [json.dumps(fingerprint.of(value)) for value in make()]
    assert len(set(texts)) == len(texts)


def test_what_refers_to_itself() -> None:
    knot: list[Any] = [1]
    knot.append(knot)
    assert fingerprint.of(knot) == [1, {"within": 1}]

    def update(again: bool = True) -> Any:
        return update(again=False) if again else None

    fingerprint.of(update)


def test_what_cannot_be_compared() -> None:
    with pytest.raises(UserError, match=r"a generator in the run's settings cannot be compared"):
        fingerprint.of({"a": (number for number in range(3))})
    with pytest.raises(UserError, match="a object in the run's settings"):
        fingerprint.of(object())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_optimizer_is_told_by_its_rate() -> None:
    for name in optimizer_defaults.OPTIMIZERS:
        if name == "dpsgd":  # which no recipe can have
            continue
        recipe = named.recipe("mnist", "fast").replace(optimizer=name)
        digests = [
            fingerprint.digest(
                make_optimizer(
                    recipe.replace(learning_rate=rate), total_steps=100, key=jax.random.key(0)
                )
            )
            for rate in (0.01, 0.01, 0.02)
        ]
        assert digests[0] == digests[1] != digests[2], name


def composed() -> Any:
    """An optimizer of several, and a set, whose order depends on hashes."""
    inner = optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(0.1, 10))
    return [optax.chain(optax.clip(1.0), inner), optax.contrib.muon(0.1), {"a", "b", "c"}]


def test_in_another_process() -> None:
    """Nothing of it is an address or a hash that Python draws anew."""
    code = "from tests.storage.test_fingerprint import *; print(fingerprint.digest(composed()))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True, text=True
    )
    assert ran.stdout.strip() == fingerprint.digest(composed())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_what_json_has_is_left_as_it_is(value: Any) -> None:
    assert fingerprint.of(value) == value


def test_a_function_of_a_script_or_notebook_is_told_by_its_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the same name after it was edited."""

    def digest(text: str) -> str:
        namespace: dict[str, Any] = {"__name__": "__main__"}
        exec(text, namespace)
        monkeypatch.setattr(sys.modules["__main__"], "rate", namespace["rate"], raising=False)
        return fingerprint.digest(namespace["rate"])

    first = digest("def rate(step): return 0.1 / (step + 1)")
    assert digest("def rate(step): return 0.1 / (step + 1)") == first
    assert digest("def rate(step): return 0.2 / (step + 1)") != first
    assert digest("def rate(step): return 0.1 / (step - 1)") != first
