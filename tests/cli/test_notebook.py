import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from jaxcnn.cli.notebook import NotebookProgress
from jaxcnn.cli.progress import TrainProgress, progress_bar
from tests.conftest import REPOSITORY
from tests.train.test_records import RECORD

REASON = "pip install 'jaxcnn[notebook]' nbclient"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook shows, update by update."""
    texts: list[str] = []

    def display(shown: Any, display_id: bool) -> Any:
        assert display_id
        texts.append(shown._repr_html_())
        return SimpleNamespace(update=lambda shown: texts.append(shown._repr_html_()))

    module = SimpleNamespace(display=display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=module))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("jaxcnn.cli.notebook._SECONDS", -1.0)
    return texts


def test_a_bar_and_curves(shown: list[str]) -> None:
    progress = NotebookProgress()
    assert repr(progress) == "NotebookProgress()"
    progress.stop()  # a run that did not come to its beginning
    sums = {"loss_sum": jnp.array(50.0), "correct": jnp.array(75), "count": jnp.array(100)}
    progress.start(epochs=2, images=200)
    for _ in range(2):
        progress.advance(images=100, metrics=sums)
    assert 'value="0.2500"' in shown[-1]  # the chunk whose metrics are shown
    assert "loss 0.5000, accuracy 75.00%" in shown[-1]
    assert "<svg" not in shown[-1]
    progress.epoch(RECORD)
    assert 'value="0.5000"' in shown[-1]
    assert "epoch 1 of 2" in shown[-1]
    assert "test accuracy 87.50%, 30,000 images/s" in shown[-1]
    assert shown[-1].count("<svg") == 2
    progress.stop()
    assert len(shown) == 4


def test_of_a_resumed_run(shown: list[str]) -> None:
    progress = NotebookProgress()
    progress.start(epochs=2, images=200, history=[RECORD])
    assert 'value="0.5000"' in shown[-1]
    assert shown[-1].count("<svg") == 2


def test_the_bar_of_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell, kind in (
        (None, TrainProgress),
        (SimpleNamespace(), TrainProgress),  # IPython on a terminal
        (SimpleNamespace(kernel=1), NotebookProgress),
    ):
        module = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert type(progress_bar()) is kind
    monkeypatch.delitem(sys.modules, "IPython")
    assert type(progress_bar()) is TrainProgress


# What a notebook of the documentation loads and trains: few images and a small network.
SMALL = """
import dataclasses, jaxcnn, pytest
from tests import conformance
data = conformance.dataset()
patch = pytest.MonkeyPatch()
patch.setattr("jaxcnn.load_data", lambda name: data)
recipe = conformance.RECIPE.replace(optimizer="sgd", batch_size=64)
patch.setattr("jaxcnn.recipe", lambda *_: recipe)
patch.setattr("jaxcnn.train.setup.make_model", lambda *_: conformance.SmallCNN())
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a client for a notebook of some cells, or of a file; its kernel runs in a folder."""
    client = pytest.importorskip("nbclient", reason=REASON)
    pytest.importorskip("ipykernel", reason=REASON)
    pytest.importorskip("pandas", reason=REASON)
    nbformat = pytest.importorskip("nbformat", reason=REASON)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=":")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def make(*cells: str, path: Path | None = None) -> Any:
        notebook = nbformat.read(path, as_version=4) if path else nbformat.v4.new_notebook()
        before = [nbformat.v4.new_code_cell(text) for text in cells]
        notebook.cells = before + notebook.cells
        resources = {"metadata": {"path": str(tmp_path)}}
        return client.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources=resources
        )

    return make


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_notebook_of_the_documentation_runs(kernel: Any) -> None:
    client = kernel(SMALL, path=REPOSITORY / "docs" / "notebook.ipynb")
    client.execute()
    outputs = [output for cell in client.nb.cells for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 2
    assert kinds.count("text/html") == 5  # the bar, two results, two frames
    bar = next(output for output in outputs if output.output_type == "display_data")
    assert 'value="1.0000"' in bar.data["text/html"]
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert all(text.startswith("compiling kernels") for text in errors)


INTERRUPTED = """
import os, signal
from jaxcnn.storage import Every, Policy

class Pressing(jaxcnn.Observer):
    def advance(self, **_): os.kill(os.getpid(), signal.SIGINT)  # as the stop button does
    def stop(self): print("closed")

policy = Policy("checkpoints", Every(0))
try:
    jaxcnn.fit(jaxcnn.recipe(), data, checkpoints=policy, observers=[Pressing()])
except KeyboardInterrupt as error:
    print(error)
"""
THREADED = """
import asyncio
bar = jaxcnn.progress_bar()
print(type(bar).__name__)
resumed = await asyncio.to_thread(
    jaxcnn.fit, jaxcnn.recipe(), data, checkpoints=policy, observers=[bar]
)
whole = jaxcnn.fit(jaxcnn.recipe(), data)
print(resumed.history[-1].test_loss == whole.history[-1].test_loss, len(resumed.history))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_stop_button_saves_and_a_thread_goes_on(kernel: Any) -> None:
    client = kernel(SMALL, INTERRUPTED, THREADED)
    client.execute()
    texts = ["".join(o.text for o in cell.outputs if "text" in o) for cell in client.nb.cells]
    assert texts[1].startswith("closed\nstopped at step 5 of 20, saved in checkpoints/step-")
    assert texts[2] == "NotebookProgress\nTrue 4\n"


def test_the_notebook_is_stored_without_outputs() -> None:
    content = json.loads((REPOSITORY / "docs" / "notebook.ipynb").read_text())
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
