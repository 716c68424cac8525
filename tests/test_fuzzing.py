from pathlib import Path

import pytest

from tests import fuzzing


@pytest.mark.parametrize(("cases", "seed"), [(90, 2), pytest.param(450, 1, marks=pytest.mark.slow)])
def test_everything_is_accepted_or_refused(cases: int, seed: int) -> None:
    found = fuzzing.torment(cases=cases, seed=seed)
    assert found["defects"] == []
    assert len(found["counts"]) > 9  # nine targets, most with both outcomes


@pytest.mark.slow
def test_whole_commands(tmp_path: Path) -> None:
    assert fuzzing.whole_commands(tmp_path) == []
