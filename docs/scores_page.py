"""Adds the leaderboard of the recorded entries of the arena to the site, as scores.html.

MkDocs calls `on_files`, see `hooks` in mkdocs.yml.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from jaxcnn.arena import load_scores, render_leaderboard

_ENTRIES = Path(__file__).parents[1] / "benchmarks" / "results" / "arena"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page.

    Args:
        files: of the site.
        config: of the site.
    """
    page = render_leaderboard(load_scores(_ENTRIES))
    files.append(File.generated(config, "scores.html", content=page))
    return files
