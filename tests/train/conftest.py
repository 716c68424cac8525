from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def small_chunks() -> Iterator[None]:
    """Cuts an epoch into chunks of two batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 2)
        patch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 1)
        yield
