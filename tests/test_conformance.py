import numpy as np
import pytest

from jaxcnn.recipes import optimizer_defaults
from tests import conformance
from tests.linear import Linear

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

USABLE = [name for name, defaults in optimizer_defaults.OPTIMIZERS.items() if not defaults.refused]


def check(found: conformance.Finding) -> None:
    """Asserts what every optimizer has to do."""
    name = found.name
    assert found.losses[-1] < 0.9 * found.losses[0]
    assert found.compiled == 1
    assert found.restored
    # Two seeds, each at the whole and half the learning rate, all in one program.
    assert np.isfinite(found.mapped).all()
    assert (found.mapped[:, -1] < found.mapped[:, 0]).all()
    ends = found.mapped[:, -1].tolist()
    assert ends[0] != ends[2]
    # cocob ignores its learning rate; momo's is an upper bound, and its steps here are shorter.
    if name not in ("cocob", "momo"):
        assert ends[0] != ends[1]
    # The first of them is the single run, but for rounding, which does less than the nudge. A line
    # search soon takes another turn at the last bit; till then it enlarges what rounding does.
    calls, times = (slice(0, 1), 10) if name == "lbfgs" else (slice(None), 1)
    whole, nudged = found.mapped[0, calls], found.mapped[4, calls]
    bound = times * np.abs(nudged - whole).max()
    np.testing.assert_allclose(whole, found.losses[calls], rtol=0, atol=bound)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("name", USABLE)
def test_every_optimizer(name: str) -> None:
    check(conformance.examine(name))


def test_an_optimizer() -> None:
    check(conformance.examine("schedule_free_sgd", Linear()))


def test_the_table_names_every_optimizer() -> None:
    page = (conformance.REPOSITORY / "docs" / "optimizers.md").read_text()
    for name, defaults in optimizer_defaults.OPTIMIZERS.items():
        assert (f"\n| {name} | " in page) != bool(defaults.refused)
        assert (f"\n- {name}: " in page) == bool(defaults.refused)
