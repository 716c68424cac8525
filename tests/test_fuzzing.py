from pathlib import Path

from tests import fuzzing


def test_everything_is_taken_or_refused() -> None:
    found = fuzzing.torment(cases=450, seed=1)
    assert found["defects"] == []
    assert len(found["counts"]) > 9  # nine targets, most with both outcomes


def test_whole_commands(tmp_path: Path) -> None:
    assert fuzzing.whole_commands(tmp_path) == []
