from collections.abc import Iterator
from typing import Any

import pytest

from jaxcnn.train import ensemble


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Cuts an epoch into chunks of two batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 2)
        patch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 1)
        yield


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the programs that a test's first run compiles, for those that go on with it."""
    compiled: list[Any] = []
    compile_ensemble = ensemble.compile_ensemble

    def once(*args: Any) -> Any:
        if not compiled:
            compiled.append(compile_ensemble(*args))
        return compiled[0]

    monkeypatch.setattr("jaxcnn.train.ensemble.compile_ensemble", once)
