import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.data.dataset import Split
from jaxcnn.errors import UserError
from jaxcnn.train import feed
from jaxcnn.train.feed import (
    DeviceFeed,
    Feed,
    Plan,
    StreamFeed,
    choose_feed,
    make_feed,
    permutation,
)


def numbered(size: int) -> Split:
    """A split in which image and label both tell the position."""
    positions = np.arange(size)
    images = np.stack([positions // 256, positions % 256], -1).astype(np.uint8)
    return Split(images.reshape(size, 1, 1, 2), positions.astype(np.int32))


def batches(source: Feed, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches to be trained on, taken out of their chunks."""
    return [
        (np.array(chunk.batches["image"][index]), np.array(chunk.batches["label"][index]))
        for chunk in source.epoch(epoch)
        for index in range(chunk.count)
    ]


@pytest.mark.parametrize("name", ["device", "stream"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])
def test_an_epoch_has_every_image_once(
    name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 2 * 60)
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 1)
    source = make_feed(name, numbered(300), batch_size, jax.random.key(0))
    seen = batches(source, 1)
    assert [len(labels) for _, labels in seen[:-1]] == [batch_size] * (len(seen) - 1)
    assert len(seen) == source.plan.steps
    labels = np.concatenate([labels for _, labels in seen])
    assert sorted(labels) == list(range(300))
    images = np.concatenate([images for images, _ in seen]).reshape(300, 2).astype(int)
    np.testing.assert_array_equal(images[:, 0] * 256 + images[:, 1], labels)


def test_feeds_have_names() -> None:
    kinds = {"device": DeviceFeed, "stream": StreamFeed, "auto": DeviceFeed}
    for name, kind in kinds.items():
        assert type(make_feed(name, numbered(3), 2, jax.random.key(0))) is kind


def test_each_of_many_processes_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert (choose_feed("auto"), choose_feed("stream")) == ("stream", "stream")
    with pytest.raises(UserError, match="take --feed stream"):
        choose_feed("device")


@pytest.mark.parametrize("batch_size", [7, 64])
def test_both_feeds_give_the_same_chunks(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 2 * 60)
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 1)
    sources = [
        make_feed(name, numbered(300), batch_size, jax.random.key(5))
        for name in ("device", "stream")
    ]
    for epoch in (1, 2):
        for one, other in zip(*(source.epoch(epoch) for source in sources), strict=True):
            assert (one.count, one.batch_size) == (other.count, other.batch_size)
            for key in ("image", "label"):
                np.testing.assert_array_equal(one.batches[key], other.batches[key])
                assert one.batches[key].dtype == other.batches[key].dtype


@pytest.mark.parametrize("name", ["device", "stream"])
@pytest.mark.parametrize(("first", "cuts"), [(0, (2, 5)), (3, ()), (5, (7, 8)), (46, ()), (47, ())])
def test_an_epoch_can_begin_and_be_cut_anywhere(
    name: str, first: int, cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 1)
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 4)
    source = make_feed(name, numbered(300), 6 if first < 46 else 64, jax.random.key(0))
    first = min(first, source.plan.steps)
    chunks = list(source.epoch(2, first, cuts))
    ends = np.cumsum([chunk.count for chunk in chunks]) + first
    assert set(cuts) <= set(ends.tolist())
    rest = [
        np.array(chunk.batches["label"][index]) for chunk in chunks for index in range(chunk.count)
    ]
    expected = [labels for _, labels in batches(source, 2)][first:]
    assert len(rest) == len(expected)
    for one, other in zip(rest, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_order_depends_on_key_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        source = make_feed("device", numbered(50), 10, jax.random.key(seed))
        return np.concatenate([labels for _, labels in batches(source, epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)
    assert order(0, 1) == permutation(jax.random.key(0), 1, 50).tolist()


def test_chunks_stay_small_but_have_some_steps() -> None:
    plan = Plan(size=50_000, batch_size=64, image_bytes=3072)
    assert all(k * b * 3072 <= feed._CHUNK_BYTES for k, b in plan.shapes)
    plan = Plan(size=50_000, batch_size=512, image_bytes=3072)
    assert plan.shapes[0] == (feed._CHUNK_STEPS, 512)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 10**6))
def test_a_plan_covers_the_split(size: int, batch_size: int, image_bytes: int) -> None:
    plan = Plan(size, min(batch_size, size), image_bytes)
    position = steps = 0
    for start, stop, length, batch in plan.chunks():
        assert start == position < stop
        assert (stop - start) % batch == 0
        assert 1 <= (stop - start) // batch <= length
        position, steps = stop, steps + (stop - start) // batch
    assert position == size
    assert steps == plan.steps
    assert len(plan.shapes) <= 2
