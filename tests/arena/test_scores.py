import itertools
import math
from typing import Any

import numpy as np
import pytest

from jaxcnn.arena import scores
from jaxcnn.errors import UserError
from tests.arena import entries


def run(progress: list[float | None], seed: int = 1, correct: int = 9000) -> dict[str, object]:
    diverged = 0 if progress[-1] is not None else 7
    return {"seed": seed, "diverged_at": diverged, "correct": correct, "total": 10_000,
            "loss": 0.1, "progress": progress}  # fmt: skip


def tried(accuracies: list[float], losses: list[float] | None = None) -> list[dict[str, Any]]:
    """Returns trials; the most accurate ones have the lowest loss unless losses are given."""
    return [
        {"correct": round(1000 * accuracy), "total": 1000, "diverged_at": 0, "loss": loss}
        for accuracy, loss in zip(accuracies, losses or [1 - a for a in accuracies], strict=True)
    ]


def test_the_expected_best_is_the_mean_over_all_draws() -> None:
    # The best of a draw is that of the lowest loss, which is not always the most accurate.
    trials = tried([0.5, 0.9, 0.1, 0.7, 0.6, 0.3], losses=[0.4, 0.2, 0.9, 0.1, 0.3, 0.5])
    found = scores.expected_best(trials)
    assert list(found) == [1, 2, 4, 6]
    for n, value in found.items():
        draws = [
            min(draw, key=lambda trial: trial["loss"]) for draw in itertools.combinations(trials, n)
        ]
        assert value == pytest.approx(np.mean([best["correct"] / 1000 for best in draws]))
    assert found[6] == 0.7
    assert list(scores.expected_best(tried([0.5] * 8))) == [1, 2, 4, 8]
    assert scores.expected_best(tried([0.5])) == {1: 0.5}
    assert scores.expected_best([]) == {}


def test_three_studies_of_five_trials() -> None:
    accuracies = [0.1] * 4 + [0.6] + [0.3] * 5 + [0.5] * 4 + [0.9] + [1.0]
    assert scores.median_of_studies(tried(accuracies)) == 0.6
    assert scores.median_of_studies(tried([0.1, 0.4, 0.2, 0.3, 0.9, 0.1, 1.0, 1.0])) == 0.4
    assert scores.median_of_studies(tried([0.1, 0.4])) is None


def test_steps_to_a_target() -> None:
    curve = np.array([2.0, 1.0, 0.5, 0.75])
    assert scores.steps_to(1.0, curve, 400) == 150  # the middle of the second of four parts
    assert scores.steps_to(1.5, curve, 400) == 100
    assert scores.steps_to(3.0, curve, 400) == 50
    assert scores.steps_to(0.4, curve, 400) is None
    assert scores.steps_to(math.nan, curve, 400) is None
    assert scores.steps_to(1.0, np.array([math.nan, 0.5]), 400) == 300


def test_a_track() -> None:
    sgd = entries.simple("sgd", [0.97, 0.97, 0.97])
    fast = entries.simple(
        "fast",
        [0.99, 0.98, 0.985],
        final=[run([0.25, 0.2, 0.1, 0.1], seed, 9900 - 100 * seed) for seed in (1, 2, 3)],
        untuned=[run([2.0, 2.0, 2.0, 2.0], 1, 5000), run([2.0, None, None, None], 2, 1000)],
    )
    (track,) = scores.score_tracks([sgd, fast], {"mnist": entries.speed(["sgd", "fast"])})
    assert track.name == "mnist"
    assert track.target == 0.25
    assert track.seeds == 3
    assert [score.optimizer for score in track.scores] == ["fast", "sgd"]
    first, second = track.scores
    assert first.accuracy == pytest.approx(0.97)
    assert first.standard_error == pytest.approx(0.01 / 3**0.5)
    assert second.standard_error == pytest.approx(0, abs=1e-12)
    assert first.untuned == pytest.approx(0.3)
    assert second.untuned is None
    assert first.steps_to_target == 50
    assert second.steps_to_target == 350
    assert first.area == pytest.approx(0.1625)
    assert (first.diverged, first.runs) == (1, 8)
    assert second.speed == second.memory == 1
    assert first.speed is not None
    assert first.speed < 1
    assert first.memory in (1, 2, 3)


def test_trials_beyond_the_space_do_not_count_as_tuning() -> None:
    entry = entries.simple("sgd", [0.9, 0.8, 0.7, 1.0], settings={"steps": 4, "trials": 3})
    (track,) = scores.score_tracks([entry])
    assert list(track.scores[0].expected.values()) == pytest.approx([0.8, 0.8667, 0.9], abs=1e-4)
    assert track.scores[0].studies == 0.8
    assert track.scores[0].runs == 8


def test_ranks_and_significance() -> None:
    found = scores.score_tracks(
        [
            entries.simple("sgd", [0.95, 0.96, 0.94, 0.95, 0.95]),
            entries.simple("good", [0.98, 0.991, 0.969, 0.982, 0.978]),
            entries.simple("same", [0.98, 0.99, 0.97, 0.98, 0.98]),
        ]
    )
    good, same, sgd = found[0].scores
    assert (good.rank, same.rank, sgd.rank) == (1.5, 1.5, 3)
    assert good.interval == same.interval == (1, 2)
    assert sgd.interval == (3, 3)
    assert good.better_than == same.better_than == ("sgd",)
    assert sgd.better_than == ()


def test_without_the_reference_and_with_one_seed() -> None:
    (track,) = scores.score_tracks([entries.simple("adam", [0.9]), entries.simple("lion", [0.8])])
    assert track.target is None
    for score in track.scores:
        assert score.steps_to_target is score.interval is score.standard_error is None
        assert score.speed is score.memory is None
        assert score.better_than == ()
    assert [score.rank for score in track.scores] == [1, 2]


def test_a_diverged_run() -> None:
    lost = entries.simple("sgd", [0.9, 0.9], final=[run([2.0, None]), run([2.0, 1.0], 2)])
    (track,) = scores.score_tracks([lost, entries.simple("adam", [0.9, 0.8])])
    sgd = next(score for score in track.scores if score.optimizer == "sgd")
    assert np.isnan(sgd.curve).tolist() == [False, True]
    assert sgd.area is sgd.steps_to_target is track.target is None
    assert sgd.diverged == 1


def test_only_seeds_that_all_have_are_paired() -> None:
    few = entries.simple("few", [0.9, 0.8])
    (track,) = scores.score_tracks([entries.simple("sgd", [0.7, 0.7, 0.7]), few])
    assert track.seeds == 2


def test_tracks_by_variant() -> None:
    made = [entries.simple("sgd", [0.9], variant=variant) for variant in ("standard", "half-batch")]
    assert [track.name for track in scores.score_tracks(made)] == ["mnist", "mnist-half-batch"]
    with pytest.raises(UserError, match="mnist has two entries of sgd"):
        scores.score_tracks([made[0], made[0]])


def test_made_up_entries_are_scored_alike_in_any_order() -> None:
    made = [entries.entry(name) for name in ("sgd", "adam", "lion", "muon")]
    (track,), (other,) = scores.score_tracks(made), scores.score_tracks(made[::-1])
    for one, two in zip(track.scores, other.scores, strict=True):
        assert (one.optimizer, one.rank, one.interval) == (two.optimizer, two.rank, two.interval)
        assert set(one.better_than) == set(two.better_than)
