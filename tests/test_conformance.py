from collections.abc import Iterator

import jax
import numpy as np
import pytest

from jaxcnn import catalog
from tests import conformance

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

USABLE = [name for name, defaults in catalog.OPTIMIZERS.items() if not defaults.refused]


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    """Most of the time goes into optimizing small programs, which nothing here depends on."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer(name: str) -> None:
    found = conformance.examine(name)
    assert found.losses[-1] < 0.9 * found.losses[0]
    assert found.compiled == 1
    assert found.restored
    # Two seeds, each at the whole and half the learning rate, all in one program.
    assert np.isfinite(found.mapped).all()
    assert (found.mapped[:, -1] < found.mapped[:, 0]).all()
    ends = found.mapped[:, -1].tolist()
    assert ends[0] != ends[2]
    if name != "cocob":  # which ignores its learning rate
        assert ends[0] != ends[1]
    # The first of them is the single run. A line search soon takes another turn at the last bit,
    # and singular vectors are found to fewer digits than the rest.
    calls = slice(0, 1) if name == "lbfgs" else slice(None)
    tolerance = 5e-2 if name == "galore" else 1e-2
    np.testing.assert_allclose(found.mapped[0, calls], found.losses[calls], rtol=tolerance)


def test_the_table_names_every_optimizer() -> None:
    page = (conformance.REPOSITORY / "docs" / "optimizers.md").read_text()
    for name, defaults in catalog.OPTIMIZERS.items():
        assert (f"\n| {name} | " in page) != bool(defaults.refused)
        assert (f"\n- {name}: " in page) == bool(defaults.refused)
