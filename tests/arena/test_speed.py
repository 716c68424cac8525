from pathlib import Path

import pytest

from jaxcnn.arena.speed import Stopwatch, add_speeds, load_speeds, state_bytes
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from tests.arena.conftest import TRACK

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


def test_the_fastest_chunk_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first piece of a chunk, before which the program is compiled, is left out."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    for piece, seconds, rate in ((60, 2, 30), (1000, 10, 106), (40, 5, 106)):
        watch.advance(60)
        now[0] += seconds
        watch.advance(piece)
        watch.end()
        assert watch.images_per_second == rate
    watch.start()
    watch.advance(10**6)
    now[0] += 1
    watch.end()
    assert watch.images_per_second == 106


def test_the_state_of_an_optimizer(tiny_mnist: Dataset) -> None:
    """Of the linear network: 7840 weights, 10 biases, in four bytes each."""
    sizes = {name: state_bytes(TRACK.for_optimizer(name), tiny_mnist) for name in ("sgd", "adamw")}
    assert 4 * 7850 <= sizes["sgd"] <= 4 * 7850 + 16
    assert 8 * 7850 <= sizes["adamw"] <= 8 * 7850 + 16


def test_measurements_are_added(tmp_path: Path) -> None:
    one, other = ({"images_per_second": rate, "state_bytes": 3} for rate in (1.5, 2.5))
    assert load_speeds(tmp_path) == {}
    add_speeds(tmp_path, "here", {"sgd": one})
    add_speeds(tmp_path, "here", {"adam": other})
    assert load_speeds(tmp_path) == {"device": "here", "optimizers": {"adam": other, "sgd": one}}
    add_speeds(tmp_path, "there", {"adam": one})
    assert load_speeds(tmp_path) == {"device": "there", "optimizers": {"adam": one}}
    (tmp_path / "speed.json").write_text("{}")
    with pytest.raises(UserError, match=r"speed.json is damaged .*: remove it"):
        load_speeds(tmp_path)
