"""The model card of an exported network, rendered from the template `card.md`."""

import json
import re
from pathlib import Path

from jaxcnn.data.tfds import VERSIONS
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.recipes.problems import is_own_data
from jaxcnn.train.trained import Trained


def card_path(path: Path) -> Path:
    """Returns the path of the card of a file: FILE.md."""
    return path.with_name(f"{path.name}.md")


def render_card(
    network: Trained, form: str, file: str, tool: str, *, chosen_by_test: bool = False
) -> str:
    """Describes a network and the file that it was exported to.

    Args:
        network: as trained.
        form: the format of the file, see `jaxcnn.deploy.export`.
        file: name of the file.
        tool: what the file is and which versions wrote it.
        chosen_by_test: whether the checkpoint was chosen by its accuracy on the test images.

    Returns:
        The card, in Markdown.
    """
    # Imported here: only a card, a report and a page need it.
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = _plain
    template = environment.from_string(Path(__file__).with_suffix(".md").read_text())
    return template.render(
        network=network,
        recipe=network.recipe,
        run=network.run,
        progress=network.progress,
        step=network.checkpoint.step,
        real=not network.run["dataset"].startswith("synthetic-"),
        own=is_own_data(network.run["dataset"]),
        catalog=network.run["dataset"] in VERSIONS,
        parameters=count_parameters(network.variables["params"]),
        accuracy=_accuracy(network, chosen_by_test),
        form=form,
        file=json.dumps(file, ensure_ascii=False),
        tool=tool,
    )


def _plain(text: object) -> str:
    """Escapes a text that comes from a run's files, so that it is neither Markdown nor HTML."""
    return re.sub(r"[\\`*<>&|\[\]]", r"\\\g<0>", str(text))


def _accuracy(network: Trained, chosen_by_test: bool) -> str:
    """Returns the accuracy on the test images, in words."""
    progress = network.progress
    if not progress.history or progress.history[-1].step != network.checkpoint.step:
        return "not measured at this step, which is within an epoch"
    correct, total = progress.test_correct, progress.test_total
    score = f"{correct / total:.2%} ({correct:,} of {total:,} test images"
    if chosen_by_test:
        score += ", by which this checkpoint was chosen, which biases it upwards"
    return f"{score})"
