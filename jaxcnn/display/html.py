"""A table and learning curves as HTML, for notebooks: no script, no file, no network."""

import functools
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from jaxcnn.display.series import TEST, TRAIN, Curves, splits

# Text and axes have the colour of the text around them, so both dark and light pages will do.
_TEMPLATE = """\
<div style="font-size: 13px; line-height: 1.4">
<table style="border-collapse: collapse">
{%- if head %}
<thead><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
{%- endif %}
<tbody>
{%- for row in rows %}
<tr>{% for cell in row %}<td style="text-align: left">{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody>
</table>
{%- for panel in panels %}
<svg role="img" aria-label="{{ panel.title }} by epoch" width="300" height="150"
 viewBox="0 0 300 150" fill="none" font-size="11" font-family="sans-serif">
<path d="M50 20V130H290" stroke="currentColor" stroke-opacity="0.5"/>
<g fill="currentColor"><text x="50" y="12">{{ panel.title }}</text>
<text x="46" y="26" text-anchor="end">{{ panel.most }}</text>
<text x="46" y="132" text-anchor="end">{{ panel.least }}</text>
<text x="50" y="145">1</text>
<text x="290" y="145" text-anchor="end">epoch {{ panel.epochs }}</text></g>
{%- for line in panel.lines %}
<path d="{{ line.path }}" stroke="{{ line.colour }}" stroke-opacity="{{ line.opacity }}"
 stroke-width="1.5" stroke-linecap="round" {% if line.dashed %}stroke-dasharray="4 3" {% endif %}/>
{%- endfor %}
{%- for name, colour in panel.legend %}
<text x="{{ 250 - 45 * loop.index0 }}" y="12" fill="{{ colour }}">{{ name }}</text>
{%- endfor %}
</svg>
{%- endfor %}
</div>"""
_MOST_LINES = 64  # of runs in a panel: the page is saved with the notebook


def render(
    rows: Sequence[Sequence[Any]], curves: Curves | None = None, *, head: Sequence[str] = ()
) -> str:
    """Returns a table, and below it two panels with loss and accuracy by epoch, as HTML.

    Args:
        rows: of the table: texts and numbers, which are escaped.
        curves: of one run or many; without epochs there are no panels.
        head: the titles of the columns.
    """
    panels = []
    if curves and len(next(iter(curves.values()))):
        panels = [_panel(curves, "loss", "{:.3g}"), _panel(curves, "accuracy", "{:.2%}")]
    return _template().render(rows=rows, head=head, panels=panels)


@functools.cache
def _template() -> jinja2.Template:
    return jinja2.Environment(autoescape=True).from_string(_TEMPLATE)


def _panel(curves: Curves, name: str, form: str) -> dict[str, Any]:
    """Returns what the template shows of the losses or the accuracies."""
    shown = {split: curves[f"{split}_{name}"][:, :_MOST_LINES] for split in splits(curves)}
    values = np.concatenate([array.ravel() for array in shown.values()])
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    lines = []
    for (split, array), colour in zip(shown.items(), (TRAIN, TEST), strict=True):
        opacity = 1 if array.shape[1] == 1 else 0.5
        for line in array.T:
            path = _path(line, least, most)
            dashed = split == "train"
            lines.append({"path": path, "colour": colour, "dashed": dashed, "opacity": opacity})
    return {
        "title": f"{name}, nats" if name == "loss" else name,
        "least": form.format(least),
        "most": form.format(most),
        "epochs": len(next(iter(shown.values()))),
        "lines": lines,
        "legend": list(zip(shown, (TRAIN, TEST), strict=True)),
    }


def _path(values: np.ndarray, least: float, most: float) -> str:
    """Returns a line through the finite values as an SVG path; a single one is a dot.

    Args:
        values: float[epochs].
        least: shown at the lower end.
        most: shown at the upper end.
    """
    x = np.linspace(55, 285, len(values)) if len(values) > 1 else np.array([170.0])
    y = 130 - 105 * (values - least) / max(most - least, 1e-12)
    parts, pen = [], "M"
    for left, top in zip(x, y, strict=True):
        if np.isfinite(top):
            parts.append(f"{pen}{left:.1f} {top:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(parts) + ("h0" if len(parts) == 1 else "")
