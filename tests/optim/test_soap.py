from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.optim.soap import soap
from tests.updates import updates_of

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

B1, B2, EPS = 0.9, 0.8, 1e-8


def published(grads: list[np.ndarray], frequency: int, limit: int) -> list[Any]:
    """The updates of algorithm 3 of the paper, without the learning rate, in float64."""
    size = grads[0].shape
    bases, factors = [np.eye(n) for n in size], [np.zeros((n, n)) for n in size]
    mean, square, updates = np.zeros(size), np.zeros(size), []
    for step, grad in enumerate(grads):
        left, right = bases
        if step > 0:
            mean = B1 * mean + (1 - B1) * grad
            square = B2 * square + (1 - B2) * (left.T @ grad @ right) ** 2
            corrected = np.sqrt(square / (1 - B2**step)) + EPS
            adam = left.T @ mean @ right / (1 - B1**step) / corrected
            updates.append(-left @ adam @ right.T)
        else:
            updates.append(np.zeros(size))
        for axis, product in enumerate((grad @ grad.T, grad.T @ grad)):
            factors[axis] = B2 * factors[axis] + (1 - B2) * product
            if size[axis] > limit:
                continue
            if step == 0:
                bases[axis] = np.linalg.eigh(factors[axis])[1][:, ::-1]
            elif step % frequency == 0:
                bases[axis] = np.linalg.qr(factors[axis] @ bases[axis])[0]
    return updates


def gradients(rows: int, columns: int, count: int) -> list[np.ndarray]:
    """Gradients whose rows and columns differ in scale, so that no two eigenvalues are near."""
    random = np.random.RandomState(0)
    scale = np.outer(2.0 ** np.arange(rows), 2.0 ** np.arange(columns))
    return [scale * random.randn(rows, columns) for _ in range(count)]


def made(**args: Any) -> Any:
    return soap(1.0, b1=B1, b2=B2, eps=EPS, precondition_frequency=3, **args)


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (4, 6)])
def test_its_updates_are_those_of_the_paper(shape: tuple[int, int]) -> None:
    """With two rotated axes, or one of them too long. The factor of each has full rank."""
    grads = gradients(*shape, 12)
    with jax.enable_x64(True):
        ours = updates_of(made(max_precondition_dim=5), jnp.zeros(shape), grads)
    # The eigenvalues have ratios up to 1e5, so of float64 there remain ten digits.
    np.testing.assert_allclose(ours, published(grads, 3, 5), rtol=0, atol=1e-8)
    assert np.abs(ours[11] - ours[10]).max() > 0.01


def test_a_convolution_kernel_is_a_matrix_and_a_vector_is_adam_s() -> None:
    grads = gradients(8, 4, 5)
    mixed = [
        {"kernel": grad.reshape(2, 2, 2, 4), "bias": grad[3], "scale": grad[0, 0]} for grad in grads
    ]
    with jax.enable_x64(True):
        tx, params = made(max_precondition_dim=5), jax.tree.map(jnp.zeros_like, mixed[0])
        matrices = updates_of(tx, jnp.zeros((8, 4)), grads)
        ours = updates_of(tx, params, mixed)
        adam = optax.adam(1.0, B1, B2, EPS)
        biases = updates_of(adam, params["bias"], [grad[3] for grad in grads[1:]])
    for one, other in zip(ours, matrices, strict=True):
        np.testing.assert_allclose(one["kernel"].reshape(8, 4), other, rtol=0, atol=1e-12)
    np.testing.assert_allclose([one["bias"] for one in ours[1:]], biases, rtol=0, atol=1e-12)
    assert np.array(ours[0]["bias"]).tolist() == [0, 0, 0, 0]
    assert ours[1]["scale"].shape == ()


def test_weight_decay_is_decoupled_and_masked() -> None:
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    tx = soap(0.5, weight_decay=0.1, mask={"kernel": True, "bias": False})
    (updates,) = updates_of(tx, params, [jax.tree.map(jnp.ones_like, params)])
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_runs_that_are_mapped_are_those_by_themselves() -> None:
    """Also if they are at different steps, of which some renew their eigenvectors."""
    grads, tx = gradients(4, 4, 9), made()
    with jax.enable_x64(True):
        start, grad = jnp.zeros((4, 4)), jnp.asarray(grads[8])
        states = [tx.init(start)]
        for earlier in grads[:4]:
            states.append(tx.update(jnp.asarray(earlier), states[-1], start)[1])
        states = [states[steps] for steps in (0, 3, 4)]
        alone = [tx.update(grad, state, start) for state in states]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        mapped = jax.vmap(lambda state: tx.update(grad, state, start))(stacked)
    for index, one in enumerate(alone):
        ours = jax.tree.map(lambda leaf, index=index: leaf[index], mapped)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), ours, one)


def operations(jaxpr: Any) -> set[str]:
    """The operations of a program that are computed whatever the values are."""
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        if equation.primitive.name != "cond":
            inner = (getattr(value, "jaxpr", None) for value in equation.params.values())
            found = found.union(*(operations(one) for one in inner if one is not None))
    return found


def test_a_mapped_step_computes_eigenvectors_only_when_they_are_due() -> None:
    """A `cond` that `vmap` maps is a `select`, whose branches are computed in every step."""
    tx, params = made(), jnp.zeros((3, 4, 4))
    state = jax.vmap(tx.init)(params)
    program = jax.make_jaxpr(jax.vmap(tx.update))(params, state, params)
    always = operations(program.jaxpr)
    assert "cond" in always
    assert "dot_general" in always
    assert not {"eigh", "qr", "geqrf", "householder_product"} & always, always
