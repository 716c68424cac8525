from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def _x64() -> Iterator[None]:
    """Float64 as the judge: rounding is so small that no relu or pool decides otherwise by it."""
    with jax.enable_x64(True):
        yield
