import numpy as np
import pytest
from scipy import stats

from jaxcnn.arena import overall
from jaxcnn.arena.scores import score_tracks
from tests.arena import entries


def reaching(optimizer: str, track: str, at: int | None) -> dict[str, object]:
    """An entry that reaches a loss of 0.25 in the part `at` of 8, or never."""
    progress = [0.5 if at is None or index < at else 0.25 for index in range(8)]
    run = {"seed": 1, "diverged_at": 0, "correct": 1, "total": 2, "progress": progress}
    return entries.simple(optimizer, [0.5], track=track, final=[run], settings={"steps": 8})


def test_profiles() -> None:
    steps = {"sgd": (7, 7), "fast": (1, 2), "mixed": (3, None), "never": (None, None)}
    tracks = score_tracks(
        reaching(name, track, at)
        for name, both in steps.items()
        for track, at in zip("ab", both, strict=True)
    )
    profiles = {one.optimizer: one for one in overall.performance_profiles(tracks)}
    # In the middle of parts: after 1.5 and 2.5 steps at best.
    assert profiles["fast"].ratios == (1, 1)
    assert profiles["fast"].score == 1
    assert profiles["sgd"].ratios == (3, 5)
    assert profiles["sgd"].score == pytest.approx((1 / 3 + 0) / 2)
    assert profiles["mixed"].ratios == (pytest.approx(3.5 / 1.5), np.inf)
    assert profiles["mixed"].score == pytest.approx((4 - 3.5 / 1.5) / 3 / 2)
    assert profiles["never"].score == 0
    assert list(profiles) == ["fast", "mixed", "sgd", "never"]
    assert overall.performance_profiles([]) == []


def test_an_optimizer_that_is_not_on_a_track_does_not_reach_its_target() -> None:
    made = [reaching("sgd", "a", 3), reaching("sgd", "b", 3), reaching("new", "a", 3)]
    profiles = overall.performance_profiles(score_tracks(made))
    assert profiles[1].optimizer == "new"
    assert profiles[1].ratios == (1, np.inf)


def test_critical_difference() -> None:
    """Four optimizers on 14 tracks, as in the example of Demsar's paper."""
    random = np.random.default_rng(0)
    accuracies = 0.5 + 0.1 * random.random((14, 4)) + 0.1 * np.arange(4)
    tracks = score_tracks(
        entries.simple(name, [round(accuracies[row, column], 4)], track=f"track{row}")
        for row in range(14)
        for column, name in enumerate("abcd")
    )
    found = overall.critical_difference(tracks)
    assert found is not None
    assert found.optimizers == ("d", "c", "b", "a")
    assert found.tracks == 14
    # Table 5a: q of 4 classifiers at 5 % is 2.569.
    assert found.difference == pytest.approx(2.569 * (4 * 5 / (6 * 14)) ** 0.5, rel=1e-3)
    table = np.round(accuracies, 4)
    ranks = stats.rankdata(-table, axis=1).mean(0)
    assert found.ranks == pytest.approx(tuple(ranks[::-1]))
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)


def test_groups() -> None:
    assert overall._groups(np.array([1.0, 1.5, 2.4, 5.0, 5.5]), 1.0) == ((0, 1), (1, 2), (3, 4))
    assert overall._groups(np.array([1.0, 1.5, 1.9, 5.0]), 1.0) == ((0, 2),)
    assert overall._groups(np.array([1.0, 2.0]), 1.0) == ()


def test_too_little_to_compare() -> None:
    one = [entries.simple(name, [0.9]) for name in ("a", "b", "c")]
    assert overall.critical_difference([]) is None
    assert overall.critical_difference(score_tracks(one)) is None
    two = one[:2] + [entries.simple(name, [0.9], track="b") for name in ("a", "b", "d")]
    assert overall.critical_difference(score_tracks(two)) is None
    same = one + [entries.simple(name, [0.9], track="b") for name in ("a", "b", "c")]
    found = overall.critical_difference(score_tracks(same))
    assert found is not None
    assert found.p_value == 1
    assert found.groups == ((0, 2),)
