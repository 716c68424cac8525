"""A model card: what a network is, how good, of what data, and the code that loads it."""

import json
import re
from pathlib import Path

from jaxcnn.networks.inspect import count_parameters
from jaxcnn.train.trained import Trained

_DESCRIPTIONS = {
    "mnist": "Two convolutions and two dense layers, with dropout.",
    "cifar10": "Five convolutions with BatchNorm and two dense layers, with dropout.",
}
_NEEDS = {
    "stablehlo": "With `pip install jax flatbuffers`, on CPU, CUDA or TPU:",
    "safetensors": "The weights, under the names and in the layouts of PyTorch. With `pip install "
    "torch safetensors numpy`:",
    "onnx": "With `pip install onnxruntime numpy`:",
}
# Authors and licences as the data sets' own pages state them.
_DATA = {
    "mnist": "MNIST by Yann LeCun, Corinna Cortes and Christopher J. C. Burges: 60,000 training "
    "and 10,000 test images of handwritten digits, from NIST's Special Databases 1 and 3. LeCun "
    "and Cortes hold the copyright; the licence is CC BY-SA 3.0. To be cited as LeCun, Bottou, "
    "Bengio and Haffner, Gradient-Based Learning Applied to Document Recognition, 1998.",
    "cifar10": "CIFAR-10 by Alex Krizhevsky, Vinod Nair and Geoffrey Hinton: 50,000 training and "
    "10,000 test photographs, labelled from the 80 Million Tiny Images, which their authors have "
    "since withdrawn for offensive content. No licence is stated; to be cited as Krizhevsky, "
    "Learning Multiple Layers of Features from Tiny Images, 2009.",
}
_LIMITS = {
    "mnist": "It knows single digits, centred in the picture and about 20 pixels high, as MNIST's "
    "are; writing that was scanned otherwise must be made so first.",
    "cifar10": "It knows small photographs with one thing of the ten in the middle, as CIFAR-10's "
    "are, and inherits the choice of what was on the web around 2008.",
}


def beside(path: Path) -> Path:
    """Returns where the card of a file lies."""
    return path.with_name(f"{path.name}.md")


def render(
    network: Trained, form: str, file: str, tool: str, *, chosen_by_test: bool = False
) -> str:
    """Returns a card in Markdown.

    Args:
        network: as trained.
        form: of the file, see `jaxcnn.deploy.export`.
        file: its name.
        tool: what the file is and was written with.
        chosen_by_test: whether the checkpoint was chosen by its score on the test images.
    """
    # Imported here: only a card and a report need it.
    import jinja2

    recipe, run = network.recipe, network.run
    progress = network.progress
    real = not run["dataset"].startswith("synthetic-")
    height, width, channels = recipe.image_shape
    environment = jinja2.Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = _plain
    template = environment.from_string(Path(__file__).with_suffix(".md").read_text())
    return template.render(
        network=recipe.network,
        form=form,
        file=json.dumps(file, ensure_ascii=False),
        title=f"{recipe.title} network",
        description=_DESCRIPTIONS[recipe.network],
        needs=_NEEDS[form],
        limits=_LIMITS[recipe.network],
        data=_DATA[recipe.network] if real else "Pictures drawn by jaxcnn, under its licence, MIT.",
        real=real,
        dataset=run["dataset"],
        parameters=count_parameters(network.variables["params"]),
        accuracy=_accuracy(network, chosen_by_test),
        height=height,
        width=width,
        channels=channels,
        mean=list(recipe.mean),
        std=list(recipe.std),
        class_names=recipe.class_names,
        recipe=recipe.asdict(),
        training=(
            f"{network.checkpoint.step:,} steps, {len(progress.history)} of {recipe.epochs} "
            f"epochs, on the training images of {run['dataset']} {run['dataset_version']}, seed "
            f"{run['seed']}."
        ),
        device=progress.device,
        versions=progress.versions,
        tool=tool,
    )


def _plain(text: object) -> str:
    """Returns a text of the run's author's, none of whose characters Markdown or HTML takes up."""
    return re.sub(r"[\\`*<>&|\[\]]", r"\\\g<0>", str(text))


def _accuracy(network: Trained, chosen_by_test: bool) -> str:
    progress = network.progress
    if not progress.history or progress.history[-1].step != network.checkpoint.step:
        return "not measured at this step, which is within an epoch"
    right, total = progress.test_correct, progress.test_total
    chosen = ", by which this checkpoint was chosen, which flatters it" if chosen_by_test else ""
    return f"{right / total:.2%} ({right:,} of the {total:,} test images{chosen})"
