import pytest

from tests import killing


@pytest.mark.slow
def test_nothing_is_lost_or_changed(synthetic_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", synthetic_cache)
    found = killing.torment(kills=3, seed=0)
    assert found.defects == []
    assert found.kills == 3
    assert found.verified > 0
    assert found.resumed > 0
    assert found.finished > 0


@pytest.mark.slow
def test_an_entry_of_the_arena_is_the_same() -> None:
    found = killing.harass("arena", kills=3, seed=0)
    assert found.defects == []
    assert found.kills == 3
    assert found.finished > 0
