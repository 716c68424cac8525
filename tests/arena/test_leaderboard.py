import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.arena.leaderboard import markdown_table, render_leaderboard, write_leaderboard
from jaxcnn.arena.scores import score_tracks
from jaxcnn.errors import UserError, WriteError
from tests.arena import entries
from tests.page import Page, fetched

NONE = "\N{EN DASH}"  # where a number is to be
NAMES = ("sgd", "adam", "lion", "muon")
TRACKS = ("mnist-sprint", "cifar10-sprint")
SPEEDS = {"mnist-sprint": entries.speed(NAMES)}


def render(made: list[dict[str, Any]], speeds: dict[str, Any] = SPEEDS) -> str:
    return render_leaderboard(score_tracks(made, speeds))


@pytest.fixture(scope="module")
def text() -> str:
    return render([entries.entry(name, track) for track in TRACKS for name in NAMES])


def data(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def cells(text: str) -> list[list[str]]:
    """The texts of all rows of the rankings, without markup."""
    rows = re.findall(r"<tr data-row.*?</tr>", text, re.DOTALL)
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
        for row in rows
    ]


def test_the_plain_table_says_everything(text: str) -> None:
    """Without a script: rank and name, accuracy, interval, and so on, the best first."""
    (track, _) = score_tracks(
        [entries.entry(name, track) for track in TRACKS for name in NAMES], SPEEDS
    )
    rows = cells(text)
    assert len(rows) == 8
    for row, score in zip(rows, track.scores, strict=False):
        assert score.interval is not None
        assert row[0].rstrip("*") == f"{score.rank:g}{score.optimizer}"
        assert row[1] == f"{100 * score.accuracy:.2f} ± {100 * (score.standard_error or 0):.2f}"
        low, high = score.interval
        assert row[2] == (f"{low:g}" if low == high else f"{low:g} to {high:g}")
        assert row[3] == str(len(score.better_than))
        shares = (score.untuned, score.expected[1], score.expected[4], score.studies)
        assert row[4:8] == [f"{100 * (share or 0):.2f}" for share in shares]
        assert row[8] == (f"{score.steps_to_target:,.0f}" if score.steps_to_target else NONE)
        assert row[9] == f"{score.area:.3f}"
        assert row[12] == f"{score.diverged} of {score.runs}"
        assert f"<code>{score.entry['command']}</code>" in text
    by_name = {row[0].lstrip("0123456789.").rstrip("*"): row for row in rows[:4]}
    assert by_name["sgd"][10:12] == ["1.00", "1.00"]
    assert {tuple(row[10:12]) for row in rows[4:]} == {(NONE, NONE)}  # not measured
    assert text.count('href="https://arxiv.org/abs/1711.05101"') == 8


def test_it_needs_no_network_and_allows_nothing_but_its_own_script(text: str) -> None:
    page = Page(text)
    assert page.open == []
    links = {one.attributes["href"] for one in page.elements if "href" in one.attributes}
    assert {link for link in links if link[0] != "#"} == {"https://arxiv.org/abs/1711.05101"}
    assert fetched(re.sub(r'(href="|")(#|https://arxiv)', "", text)) == []
    assert not re.search(r"\sstyle=|\son[a-z]+=", text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = policy.replace("&#39;", "'")
    assert policy.startswith("default-src 'none'; ")
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    for content in (style, script):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_the_same_entries_make_the_same_page(text: str) -> None:
    assert text == render([entries.entry(name, track) for track in TRACKS for name in NAMES])


def test_what_an_entry_says_is_text() -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'
    hostile = entries.entry("adam") | {
        "optimizer": evil,
        "track": "mnist-sprint",
        "reference": f'javascript:alert(3) {evil} arXiv 1412.6980 https://example.org "',
        "command": evil,
        "device": evil,
        "at_edge": [evil],
        "space": {evil: [0.1, 1.0, "log"]},
    }
    text = render([entries.entry("sgd"), hostile, entries.entry("__proto__")])
    text += render([{**hostile, "variant": evil}])
    assert "<img" not in text
    assert text.count("<script") == 2 * 2
    assert set(re.findall(r'href="([^#"][^"]*)"', text)) == {
        "https://arxiv.org/abs/1412.6980",
        "https://arxiv.org/abs/1711.05101",
    }
    (found,) = [one for one in data(text)["tracks"][0]["optimizers"] if one["name"] == evil]
    assert found["command"] == evil
    assert found["names"] == [evil]


def test_what_the_script_draws(text: str) -> None:
    track = data(text)["tracks"][0]
    assert track["steps"] == 720
    assert track["reference"] == "sgd"
    for one in track["optimizers"]:
        made = entries.entry(one["name"])
        assert len(one["curve"]) == entries.WINDOWS
        assert one["trials"] == [
            [run["correct"] / 5000, int(run["diverged_at"] > 0), run["values"]["learning_rate"]]
            for run in made["trials"]
        ]
        assert one["best"] == made["best"]
        assert [count for count, _ in one["expected"]] == [1, 2, 4, 8, 16]


def test_a_diverged_optimizer() -> None:
    lost = {"seed": 1, "diverged_at": 3, "correct": 980, "total": 10_000, "progress": [2.3, None]}
    text = render([entries.simple("sgd", [0.9]), entries.simple("lost", [0.9], final=[lost])])
    found = data(text)["tracks"][0]["optimizers"][1]
    assert found["name"] == "lost"
    assert found["curve"] == [2.3, None]
    assert cells(text)[1][8:10] == [NONE, NONE]  # neither target nor area


def test_all_tracks_only_where_there_are_two(text: str) -> None:
    assert 'id="overall"' in text
    assert "Friedman" in text
    one = render([entries.entry(name) for name in NAMES])
    assert 'id="overall"' not in one
    assert "<nav" not in one


def test_the_file(tmp_path: Path) -> None:
    made = [entries.entry(name) for name in NAMES]
    tracks = score_tracks(made, SPEEDS)
    path = write_leaderboard(tracks, tmp_path / "board.html")
    assert path.read_text() == render(made)
    with pytest.raises(UserError, match="two entries of sgd"):
        score_tracks([made[0], made[0]], SPEEDS)
    with pytest.raises(WriteError, match="--out"):
        write_leaderboard(tracks, tmp_path / "board.html" / "x.html")


def test_markdown() -> None:
    (track,) = score_tracks([entries.entry(name) for name in NAMES], SPEEDS)
    lines = markdown_table(track, 2).splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {7}
    assert lines[2].startswith(f"| 1 (1) | {track.scores[0].optimizer} | ")
