"""The leaderboard: a page with the scores of all tracks, as one HTML file without network."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcnn.arena import diagrams
from jaxcnn.arena.scores import REFERENCE, Score, TrackScores
from jaxcnn.display.script import source_expression, within_script
from jaxcnn.errors import OUT_REMEDY
from jaxcnn.storage import atomic

_SCRIPTS = ("table.js", "charts.js", "panel.js", "start.js")

# Nothing from elsewhere: the page's own script and style, by their hashes.
_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; "
    "form-action 'none'"
)

# The columns after the optimizer's name: the title, how the first click sorts, and the meaning.
_COLUMNS = (
    ("test accuracy, %", "descending", "Mean over the seeds after tuning, ± its standard error."),
    (
        "rank, 95 %",
        "ascending",
        "Rank by test accuracy, and the 95 % interval of a bootstrap over the seeds, the same ones "
        "for all optimizers.",
    ),
    (
        "better than",
        "descending",
        "Number of optimizers whose test accuracy is significantly lower: paired t-test over the "
        "seeds, with Holm's correction for all pairs, 5 %.",
    ),
    (
        "untuned, %",
        "descending",
        "Test accuracy with the default hyperparameters, mean over the same seeds.",
    ),
    (
        "1 trial, %",
        "descending",
        "Accuracy on held-out training images that one trial of the search space is expected to "
        "reach.",
    ),
    ("4 trials, %", "descending", "The same for the best of four trials."),
    (
        "3 studies, %",
        "descending",
        "As AlgoPerf tunes: the median, over three studies of five trials (or fewer, of less than "
        "15), of the best accuracy on held-out training images.",
    ),
    (
        "steps to target",
        "ascending",
        f"Optimizer steps until the training loss reaches the end of tuned {REFERENCE}'s, if it "
        "does.",
    ),
    (
        "loss area",
        "ascending",
        "Area under the learning curve: the mean training loss over the whole run, in nats.",
    ),
    ("speed", "descending", f"Training images per second, relative to {REFERENCE}."),
    ("memory", "ascending", f"Size of parameters and optimizer state, relative to {REFERENCE}."),
    ("diverged", "ascending", "Runs, trials included, whose loss was not finite."),
)
_NONE = "\N{EN DASH}"

# Only these become links: an entry may come from anywhere.
_ARXIV = re.compile(r"(arXiv[: ](\d{4}\.\d{4,5}))")


def write_leaderboard(tracks: Sequence[TrackScores], out: Path) -> Path:
    """Writes the leaderboard atomically, replacing an existing file.

    Args:
        tracks: the scores, at least of one track. What their entries say is shown as text.
        out: path of the HTML file.

    Returns:
        The path.

    Raises:
        WriteError: the file cannot be written.
    """
    atomic.write(out, render_leaderboard(tracks).encode(), OUT_REMEDY)
    return out


def render_leaderboard(tracks: Sequence[TrackScores]) -> str:
    """Returns the leaderboard, in HTML.

    Args:
        tracks: the scores, at least of one track.
    """
    # Imported here: only a page needs it.
    import jinja2
    from markupsafe import Markup

    folder = Path(__file__).with_name("page")
    style = (folder / "page.css").read_text()
    script = '"use strict";\n' + "".join((folder / name).read_text() for name in _SCRIPTS)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    optimizers = {score.optimizer for track in tracks for score in track.scores}
    many = f"{len(tracks)} tracks" if len(tracks) > 1 else tracks[0].name
    columns = [{"title": "optimizer", "order": "text", "hint": ""}]
    data = {"tracks": [_data(track) for track in tracks]}
    columns += [{"title": one, "order": two, "hint": three} for one, two, three in _COLUMNS]
    return environment.get_template("page.html").render(
        policy=_POLICY.format(script=source_expression(script), style=source_expression(style)),
        style=Markup(style),
        script=Markup(script),
        title=f"Arena: {len(optimizers)} optimizers on {many}",
        subtitle="Every optimizer is tuned alike, by the same number of quasi-random trials on "
        "held-out training images; the best trial is then trained with other seeds on all training "
        "images, and scored once on the test images.",
        columns=columns,
        tracks=[_track(index, track) for index, track in enumerate(tracks)],
        overall=diagrams.profiles(tracks),
        critical=diagrams.critical(tracks),
        data=Markup(within_script(json.dumps(data, separators=(",", ":"), allow_nan=False))),
    )


def markdown_table(track: TrackScores, count: int = 10) -> str:
    """Returns the first optimizers of a track as a table in Markdown.

    Args:
        track: the scores.
        count: number of optimizers.
    """
    titles = ("rank", "optimizer", "test accuracy, %", "untuned, %", "steps to target", "speed")
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for score in track.scores[:count]:
        cells = (
            _rank(score),
            score.optimizer.replace("|", "\\|"),
            _accuracy(score),
            _percent(score.untuned),
            _number(score.steps_to_target, ",.0f"),
            _number(score.speed, ".2f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _track(index: int, track: TrackScores) -> dict[str, Any]:
    """Returns what the template shows of a track."""
    return {
        "id": f"track-{index}",
        "name": track.name,
        "facts": _facts(track),
        "rows": [_row(score, len(track.scores)) for score in track.scores],
    }


def _facts(track: TrackScores) -> str:
    """Describes in a few sentences how a track was run."""
    entries = [score.entry for score in track.scores]
    settings = entries[0]["settings"]
    known = (
        ("epochs", "{} epochs" if settings.get("epochs") != 1 else "{} epoch"),
        ("steps", "{:,} steps"),
        ("batch_size", "batches of {}"),
        ("trials", "{} trials each"),
        ("seeds", "{} seeds"),
    )
    parts = [form.format(settings[name]) for name, form in known if name in settings]
    devices = dict.fromkeys(str(entry["device"]) for entry in entries)
    target = "" if track.target is None else f" Target: a training loss of {track.target:.3g}."
    device = ", ".join(devices)
    return f"{', '.join(parts)}.{target} Device: {device or 'not recorded'}."


def _row(score: Score, count: int) -> dict[str, Any]:
    """Returns a row of the table: what is shown and what it is sorted by.

    Args:
        score: of the optimizer.
        count: number of optimizers.
    """
    cells = [
        (score.accuracy, _accuracy(score)),
        (score.rank, _interval(score)),
        (len(score.better_than), str(len(score.better_than))),
        (score.untuned, _percent(score.untuned)),
        (score.expected.get(1), _percent(score.expected.get(1))),
        (score.expected.get(4), _percent(score.expected.get(4))),
        (score.studies, _percent(score.studies)),
        (score.steps_to_target, _number(score.steps_to_target, ",.0f")),
        (score.area, _number(score.area, ".3f")),
        (score.speed, _number(score.speed, ".2f")),
        (score.memory, _number(score.memory, ".2f")),
        (score.diverged, f"{score.diverged} of {score.runs}"),
    ]
    row: list[dict[str, Any]] = [
        {"value": "" if value is None else value, "text": text, "bar": None}
        for value, text in cells
    ]
    row[1]["bar"] = _bar(score, count)
    edges = ", ".join(map(str, score.entry["at_edge"]))
    return {
        "name": score.optimizer,
        "place": f"{score.rank:g}",
        "edge": f"The best {edges} is at the edge of the search space." if edges else "",
        "cells": row,
        "command": str(score.entry["command"]),
        "reference": _reference(score),
    }


def _bar(score: Score, count: int) -> tuple[float, ...] | None:
    """Returns where an interval of ranks begins, the rank is, and the interval ends, in pixels."""
    if score.interval is None or count < 2:
        return None
    low, high = score.interval
    return tuple(round(5 + 54 * (rank - 1) / (count - 1), 1) for rank in (low, score.rank, high))


def _data(track: TrackScores) -> dict[str, Any]:
    """Returns what the script draws of a track."""
    return {
        "steps": track.scores[0].entry["settings"]["steps"],
        "reference": REFERENCE,
        "optimizers": [_drawn(score, len(track.scores)) for score in track.scores],
    }


def _drawn(score: Score, count: int) -> dict[str, Any]:
    """Returns what the script draws of an optimizer, one of `count`."""
    entry = score.entry
    names = list(entry["space"])
    trials = [
        [
            round((trial["correct"] or 0) / trial["total"], 5),
            int(trial["diverged_at"] > 0),
            *(trial["values"].get(name) for name in names),
        ]
        for trial in entry["trials"]
    ]
    return {
        "name": score.optimizer,
        "summary": f"{_accuracy(score)} % test accuracy, rank {_rank(score)}; significantly better "
        f"than {len(score.better_than)} of {count - 1} others",
        "curve": [round(v, 5) if math.isfinite(v) else None for v in score.curve.tolist()],
        "names": names,
        "trials": trials,
        "best": entry["best"],
        "expected": [[n, round(value, 6)] for n, value in score.expected.items()],
        "command": str(entry["command"]),
        "reference": _reference(score),
    }


def _reference(score: Score) -> list[tuple[str, str]]:
    """Returns an entry's reference in parts, each with the address of its link, or none."""
    parts, rest = [], str(score.entry["reference"])
    while found := _ARXIV.search(rest):
        parts += [(rest[: found.start()], ""), (found[1], f"https://arxiv.org/abs/{found[2]}")]
        rest = rest[found.end() :]
    return [part for part in [*parts, (rest, "")] if part[0]]


def _accuracy(score: Score) -> str:
    error = "" if score.standard_error is None else f" ± {100 * score.standard_error:.2f}"
    return f"{100 * score.accuracy:.2f}{error}"


def _rank(score: Score) -> str:
    interval = "" if score.interval is None else f" ({_interval(score)})"
    return f"{score.rank:g}{interval}"


def _interval(score: Score) -> str:
    if score.interval is None:
        return _NONE
    low, high = score.interval
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.2f}"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
