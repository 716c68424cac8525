"""The leaderboard in a browser, opened from disk without network."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jaxcnn.arena.leaderboard import write_leaderboard
from jaxcnn.arena.scores import score_tracks
from tests.arena import entries
from tests.deploy.browsing import fits, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

pytestmark = pytest.mark.slow

EVIL = '<img src=x onerror="alert(1)">'
NAMES = [*entries.OPTIMIZERS, EVIL, "__proto__"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [
        entries.entry(name, track) for track in ("mnist-sprint", "cifar10-sprint") for name in NAMES
    ]
    for entry in made[:3]:  # two hyperparameters
        entry["space"] = {**entry["space"], "b1": [0.5, 0.99, "linear"]}
        for index, trial in enumerate(entry["trials"]):
            trial["values"]["b1"] = 0.5 + 0.03 * index
    out = tmp_path_factory.mktemp("arena") / "board.html"
    speeds = {"mnist-sprint": entries.speed(NAMES)}
    return write_leaderboard(score_tracks(made, speeds), out)


@pytest.fixture
def wide(browser: "Browser", path: Path) -> "Iterator[Tab]":
    yield from opened(browser, path, width=1400)


@pytest.fixture
def narrow(browser: "Browser", path: Path) -> "Iterator[Tab]":
    yield from opened(browser, path, width=360, has_touch=True)


def names(page: "Tab") -> list[str]:
    """The optimizers that are shown, from top to bottom."""
    return page.evaluate(
        """[...document.querySelectorAll("#track-0 .ranking tbody tr[data-row]")]
            .filter(row => !row.hidden).map(row => row.cells[0].dataset.value)"""
    )


def column(page: "Tab", index: int) -> list[str]:
    return page.evaluate(
        """index => [...document.querySelectorAll("#track-0 .ranking tbody tr[data-row]")]
            .map(row => row.cells[index].dataset.value)""",
        index,
    )


def test_columns_sort_both_ways_and_missing_values_stay_last(wide: "Tab") -> None:
    first = names(wide)
    heads = wide.locator("#track-0 thead th")
    heads.nth(0).locator("button").click()
    assert names(wide) == sorted(NAMES)
    heads.nth(0).locator("button").click()
    assert names(wide) == sorted(NAMES, reverse=True)
    heads.nth(8).locator("button").click()
    assert heads.nth(8).get_attribute("aria-sort") == "ascending"
    assert heads.nth(0).get_attribute("aria-sort") is None
    values = column(wide, 8)
    reached = [float(value) for value in values if value]
    assert reached == sorted(reached)
    assert 0 < len(reached) < len(values)
    assert values[len(reached) :] == [""] * (len(values) - len(reached))
    heads.nth(8).locator("button").click()
    values = column(wide, 8)
    assert [float(value) for value in values if value] == reached[::-1]
    assert values[-1] == ""
    heads.nth(2).locator("button").click()
    assert sorted(names(wide)) == sorted(first)


def test_the_filter(wide: "Tab") -> None:
    wide.locator("#track-0 input").fill("Lion, sgd")
    shown = names(wide)
    assert {"lion", "sgd", "sign_sgd", "optimistic_gradient_descent"} & set(shown) == {
        "lion",
        "sgd",
        "sign_sgd",
    }
    assert (
        wide.locator("#track-0 [role=status]").inner_text()
        == f"{len(shown)} of {len(NAMES)} optimizers"
    )
    wide.locator("#track-0 input").fill("")
    assert len(names(wide)) == len(NAMES)


def test_a_row_is_chosen_and_others_are_compared(wide: "Tab") -> None:
    panel = wide.locator("#track-0 aside")
    first, second, third = names(wide)[:3]
    assert panel.locator("h3").inner_text() == first
    wide.locator("#track-0 tr[data-row='1']").click()
    assert panel.locator("h3").inner_text() == second
    wide.locator("#track-0 tr[data-row='2']").hover()
    assert panel.locator("h3").inner_text() == third
    assert panel.locator("path.curve.shown").count() == 1
    assert panel.locator("path.curve.pinned").count() == 1
    assert panel.locator("path.curve").count() == len(NAMES) + 3
    assert panel.locator(".legend").inner_text().split() == ["━", third, "━", second, "┄", "sgd"]
    wide.locator("h1").hover()
    assert panel.locator("h3").inner_text() == second
    made = entries.entry(second)
    assert panel.locator("pre").inner_text() == made["command"]
    assert panel.locator("a").get_attribute("href") == "https://arxiv.org/abs/1711.05101"


def test_every_trial_is_drawn(wide: "Tab") -> None:
    lost = {
        name: sum(trial["diverged_at"] > 0 for trial in entries.entry(name)["trials"])
        for name in entries.OPTIMIZERS[3:]
    }
    name = max(lost, key=lambda name: lost[name])
    wide.locator("#track-0 input").fill(name)
    wide.locator("#track-0 tr[data-row]:not([hidden])").first.click()
    panel = wide.locator("#track-0 aside")
    assert panel.locator("h3").inner_text() == name
    assert lost[name] > 0
    assert panel.locator("path.cross.shown").count() == lost[name]
    assert panel.locator("circle.shown").count() == 16 - lost[name]
    assert panel.locator("circle.best").count() == 1


def test_the_hyperparameter_is_chosen(wide: "Tab") -> None:
    two = entries.OPTIMIZERS[0]
    wide.locator("#track-0 input").fill(two)
    wide.locator(f"#track-0 tr[data-row]:not([hidden]) >> text={two}").first.click()
    panel = wide.locator("#track-0 aside")
    before = panel.locator("circle.best").get_attribute("cx")
    panel.locator("select").select_option("b1")
    assert panel.locator("circle.best").get_attribute("cx") != before


def test_names_are_text(wide: "Tab") -> None:
    for name in (EVIL, "__proto__"):
        wide.locator("#track-0 input").fill(name.split()[0])
        wide.locator("#track-0 tr[data-row]:not([hidden])").first.click()
        assert wide.locator("#track-0 aside h3").inner_text() == name
    assert wide.locator("img").count() == 0


def test_a_track_at_a_time(wide: "Tab") -> None:
    sections = wide.locator("section.track")
    assert [sections.nth(i).is_visible() for i in range(3)] == [True, False, False]
    wide.locator("nav a").nth(1).click()
    assert [sections.nth(i).is_visible() for i in range(3)] == [False, True, False]
    assert wide.locator("nav a[aria-current]").inner_text() == "cifar10-sprint"
    wide.locator("nav a").nth(2).click()
    assert wide.locator("#overall svg.diagram").count() == 2
    assert wide.locator("#overall .line").count() == len(NAMES)
    heads = wide.locator("#overall thead button")
    heads.nth(2).click()
    ranks = wide.locator("#overall tbody td:nth-child(3)").all_inner_texts()
    assert [float(rank) for rank in ranks] == sorted(float(rank) for rank in ranks)


def test_a_mobile_screen(narrow: "Tab") -> None:
    """The panel is below the chosen row, as wide as the screen, and closes at the second tap."""
    assert fits(narrow)
    panel = narrow.locator("#track-0 aside")
    assert not panel.is_visible()
    row = narrow.locator("#track-0 tr[data-row='3']")
    row.tap()
    assert panel.locator("h3").inner_text() == row.locator("th").get_attribute("data-value")
    box, place = panel.bounding_box(), row.bounding_box()
    assert box is not None
    assert place is not None
    assert box["y"] == pytest.approx(place["y"] + place["height"], abs=2)
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 360
    assert fits(narrow)
    narrow.locator("#track-0 thead button").nth(1).tap()
    assert panel.locator("h3").inner_text() == row.locator("th").get_attribute("data-value")
    row.tap()
    assert not panel.is_visible()
    narrow.locator("nav a").nth(2).tap()
    assert fits(narrow)


def test_by_keyboard(wide: "Tab") -> None:
    wide.locator("#track-0 tr[data-row='4']").focus()
    wide.keyboard.press("Enter")
    expected = wide.locator("#track-0 tr[data-row='4'] th").get_attribute("data-value")
    assert wide.locator("#track-0 aside h3").inner_text() == expected


def test_without_a_script(browser: "Browser", path: Path) -> None:
    context = browser.new_context(
        java_script_enabled=False, offline=True, viewport={"width": 360, "height": 740}
    )
    page = context.new_page()
    page.goto(path.as_uri())
    for track in ("#track-0", "#track-1", "#overall"):
        assert page.locator(f"{track} .ranking").is_visible()
    assert page.locator("#track-1 tbody tr[data-row]").count() == len(NAMES)
    assert not page.locator("#track-0 input").is_visible()
    assert page.locator("#track-0 .repeat summary").is_visible()
    context.close()
