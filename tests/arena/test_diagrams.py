import re

from jaxcnn.arena import diagrams
from jaxcnn.arena.overall import CriticalDifference, Profile
from jaxcnn.arena.scores import score_tracks
from tests.arena import entries

TRACKS = score_tracks(
    entries.entry(name, track) for track in ("a", "b") for name in entries.OPTIMIZERS
)


def test_a_profile_is_steps() -> None:
    path = diagrams._steps(Profile("adam", (1.0, 2.5, 5.0, float("inf")), 0.0))
    # From 1 at x = 50 to 4 at x = 625; a quarter of the height at a time, from 260 up to 15.
    assert path == "M50 260H50.0V198.8H337.5V137.5H625"


def test_the_best_profiles_are_coloured() -> None:
    found = diagrams.profiles(TRACKS)
    assert found is not None
    assert [row["colour"] for row in found["rows"][:9]] == [*(f"c{i}" for i in range(8)), "other"]
    assert [line["name"] for line in found["lines"]] == [row["name"] for row in found["rows"]][::-1]
    assert diagrams.profiles(TRACKS[:1]) is None
    assert diagrams.profiles([]) is None


def test_names_of_the_critical_difference_are_apart() -> None:
    found = diagrams.critical(TRACKS)
    assert found is not None
    assert "Nemenyi" in found["caption"]
    places = [(name["anchor"], name["y"]) for name in found["names"]]
    assert len(set(places)) == len(entries.OPTIMIZERS)
    assert max(y for _, y in places) <= found["height"]
    assert diagrams.critical(TRACKS[:1]) is None


def test_bars_span_the_ranks_of_a_group(monkeypatch: object) -> None:
    names = ("a" * 40, "b", "c", "d", "e")
    difference = CriticalDifference(
        names, (1.0, 1.5, 3.0, 4.5, 5.0), 9, 0.01, 0.6, ((0, 1), (3, 4))
    )
    monkeypatch.setattr(diagrams, "critical_difference", lambda tracks: difference)  # type: ignore[attr-defined]
    found = diagrams.critical(TRACKS)
    assert found is not None
    ends = [tuple(map(float, re.findall(r"[MH]([\d.]+)", bar))) for bar in found["bars"]]
    # Rank 1 is at 230, rank 5 at 630, and a bar reaches 3 pixels further.
    assert ends == [(227, 283), (577, 633)]
    assert found["names"][0]["text"] == f"{'a' * 27}… 1.0"
    assert "So few tracks" not in found["caption"]
