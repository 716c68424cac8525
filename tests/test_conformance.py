import math

import numpy as np
import pytest

from jaxcnn import catalog
from tests import conformance

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

USABLE = [name for name, defaults in catalog.OPTIMIZERS.items() if not defaults.refused]


@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer(name: str) -> None:
    found = conformance.examine(name)
    assert found.last < 0.9 * found.first
    assert found.compiled == 1
    assert found.restored
    # Two seeds at the whole and at half the learning rate, all in one program.
    assert np.isfinite(found.mapped).all()
    assert found.mapped[0] != found.mapped[1]
    if name != "cocob":  # which ignores its learning rate
        assert found.mapped[0] != found.mapped[2]
    # A line search may take another turn at the last bit.
    tolerance = 0.5 if name == "lbfgs" else 1e-3
    assert math.isclose(found.mapped[0], found.single, rel_tol=tolerance)


def test_the_table_names_every_optimizer() -> None:
    page = (conformance.REPOSITORY / "docs" / "optimizers.md").read_text()
    for name, defaults in catalog.OPTIMIZERS.items():
        assert (f"\n| {name} | " in page) != bool(defaults.refused)
        assert (f"\n- {name}: " in page) == bool(defaults.refused)
