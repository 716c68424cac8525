import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxcnn.errors import UserError
from jaxcnn.optim.extra_args import with_slow_params
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.optim.named import find_factory, source_file
from jaxcnn.recipes import named, optimizer_defaults
from tests.updates import updates_of

BASE = named.recipe("mnist", "reference")

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


def by_hand(name: str, rate: float) -> optax.GradientTransformation:
    """What a name stands for that takes more than numbers."""
    sgd = optax.sgd(rate, momentum=0.9)
    match name:
        case "lookahead":
            return with_slow_params(optax.lookahead(sgd, 5, 0.5))
        case "sam":
            adversary = optax.chain(contrib.normalize(), optax.sgd(0.05))
            return contrib.sam(sgd, adversary, sync_period=2, opaque_mode=True)
        case "schedule_free":
            return contrib.schedule_free(optax.sgd(rate), rate, b1=0.9, weight_lr_power=2.0)
        case "mechanize":
            return contrib.mechanize(sgd, 0.01, 1e-8, 1e-6, 6)
        case "reduce_on_plateau":
            return optax.chain(sgd, contrib.reduce_on_plateau(0.5, 5, 1e-4, 0.0, 0, 200, 0.0))
    raise NotImplementedError(name)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("lookahead", 6), ("sam", 2), ("schedule_free", 3), ("mechanize", 3)),
        ("reduce_on_plateau", 1500),  # a mean over 200, the best one, and six that are no better
    ],
)
def test_what_a_name_stands_for(name: str, count: int) -> None:
    recipe = BASE.replace(optimizer=name, learning_rate=0.1, weight_decay=0.0, schedule="constant")
    params, grad = jnp.arange(1.0, 4.0), np.array([0.5, -1.0, 2.0], np.float32)
    extra: dict[str, Any] = {"sam": {"grad_fn": lambda params, *_: params * params}}.get(name, {})
    extra |= {"value": 1.0} if name == "reduce_on_plateau" else {}
    ours, theirs = (
        np.array(updates_of(tx, params, count * [grad], **extra))
        for tx in (make_optimizer(recipe, count), by_hand(name, 0.1))
    )
    # The same operations on single numbers, tens of them: 6e-8 each.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)
    if name == "reduce_on_plateau":
        assert ours[-1, 0] == pytest.approx(0.5 * ours[1000, 0], rel=1e-5)


def test_muon_orthogonalises_convolution_kernels() -> None:
    recipe = BASE.replace(optimizer="muon", weight_decay=0.0, learning_rate=0.1)
    params = {"conv": jnp.ones((3, 3, 8, 16))}
    # One direction far above the others, which neither scaling nor signs would level.
    random = np.random.RandomState(0)
    grad = 2 * np.outer(random.randn(72), random.randn(16)) + random.randn(72, 16)
    grads = {"conv": jnp.asarray(grad.reshape(3, 3, 8, 16), jnp.float32)}
    (updates,) = updates_of(make_optimizer(recipe, 10), params, [grads])
    singular = np.linalg.svd(np.array(updates["conv"]).reshape(72, 16), compute_uv=False)
    assert singular.max() / singular.min() < 2.5
    for plain in (grad, np.sign(grad)):
        singular = np.linalg.svd(plain, compute_uv=False)
        assert singular.max() / singular.min() > 5


def ran(*_: Any, **__: Any) -> optax.GradientTransformation:
    raise AssertionError("code that nobody has named")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("tests.optim.test_named:ran", {}),
        ("lookahead", {"fast_optimizer": "tests.optim.test_named:ran"}),
        ("sam", {"optimizer": "tests.optim.test_named:ran"}),
        ("schedule_free", {"base_optimizer": "tests.optim.test_named:ran"}),
        ("mechanize", {"base_optimizer": "tests.optim.test_named:ran"}),
        ("reduce_on_plateau", {"optimizer": "tests.optim.test_named:ran"}),
    ],
)
def test_code_runs_only_if_the_caller_names_it(
    name: str, args: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults._trusted", set())
    recipe = BASE.replace(optimizer=name, optimizer_args=args, schedule="constant", warmup=0.0)
    with pytest.raises(UserError, match="code from outside jaxcnn, which runs only if you name it"):
        make_optimizer(recipe, 10)
    optimizer_defaults.trust("tests.optim.test_named:ran")
    with pytest.raises(UserError, match="code that nobody has named"):
        make_optimizer(recipe, 10)


@pytest.mark.parametrize("inner", ["apply_if_finite", "chain", "jax", "tree"])
def test_only_an_optimizer_goes_into_another(inner: str) -> None:
    recipe = BASE.replace(optimizer="lookahead", optimizer_args={"fast_optimizer": inner})
    with pytest.raises(UserError, match=f"optax has no optimizer '{inner}'"):
        make_optimizer(recipe, 10)


def test_an_optimizer_within_another_can_be_given() -> None:
    args = {"fast_optimizer": optax.sgd(0.5)}
    recipe = BASE.replace(optimizer="lookahead", optimizer_args=args, weight_decay=0.0)
    (updates,) = updates_of(make_optimizer(recipe, 10), jnp.ones(2), [jnp.ones(2)])
    np.testing.assert_array_equal(updates, -0.5)


def test_the_present_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that of the script, whose modules may have the same names."""
    here, script = tmp_path / "here", tmp_path / "script"
    for folder, rate in ((here, 0.25), (script, 0.5)):
        folder.mkdir()
        for name in ("an_own_optimizer", "its_helper"):
            own = "from its_helper import RATE" if name == "an_own_optimizer" else f"RATE = {rate}"
            factory = "import optax\ndef make(learning_rate):\n    return optax.sgd(RATE)\n"
            (folder / f"{name}.py").write_text(f"{own}\n{factory}")
    (script / "only_there.py").write_text("import optax\nmake = optax.sgd\n")
    monkeypatch.syspath_prepend(str(script))
    monkeypatch.chdir(here)
    monkeypatch.setattr("jaxcnn.recipes.optimizer_defaults.is_trusted", lambda _: True)
    before = list(sys.path)
    for name in ("an_own_optimizer:make", "only_there:make"):
        find_factory(name)
    assert source_file("an_own_optimizer:make") == str(here / "an_own_optimizer.py")
    assert sys.modules["its_helper"].RATE == 0.25
    assert source_file("only_there:make") == str(script / "only_there.py")
    assert source_file("sgd") == ""
    assert sys.path == before
    for name in ("an_own_optimizer", "its_helper", "only_there"):
        del sys.modules[name]
