"""Fixtures that many tests share: small data sets, small archives and where the real data is."""

import http.server
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# What is set on a user's machine is not under test. Before jax is imported, which reads it; the
# tests run on CPU, as those of every worker would not fit a GPU's memory.
for _name in list(os.environ):
    if _name.startswith(("JAX_", "XLA_")) or _name.lower().endswith("_proxy"):
        del os.environ[_name]
for _name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(_name, None)  # rich reads these
os.environ["JAX_PLATFORMS"] = "cpu"
# A job in the background of a script is started with Ctrl-C ignored, and its children would be too.
signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset, load_data
from tests.official import CIFAR_NAMES, Official, archive, write_official
from tests.stripes import striped_split

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = Path(os.environ.get("JAXCNN_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

jax.config.update("jax_numpy_rank_promotion", "raise")
# No deadline: a busy machine is no defect. The same examples everywhere; tests.fuzzing has others.
hypothesis.settings.register_profile(
    "jaxcnn",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxcnn")


@pytest.hookimpl(tryfirst=True)  # before fixtures of a module, which may compile too
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets XLA skip LLVM's expensive passes, but for slow tests of what users run.

    Compiling is most of the work of the tests. Their programs are the same but for the last step,
    from XLA's operations to machine code. It is made as users have it for the two networks in
    float32; small ones and float64, by which these are judged, are the tests' own.
    """
    light = not item.get_closest_marker("slow") or bool(item.get_closest_marker("lightly_compiled"))
    jax.config.update("jax_disable_most_optimizations", light)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(light))  # for child processes


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of the session have in common, with the compiled programs."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    for name, value in {
        "jax_compilation_cache_dir": os.environ.get(
            "JAXCNN_TEST_PROGRAMS", str(folder / "programs")
        ),
        # With a limit jax locks the folder: without, one process may read what another has half
        # written.
        "jax_compilation_cache_max_size": 2**32,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for child processes
    return folder


@pytest.fixture(autouse=True)
def _own_folders(
    shared_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keeps every test off the user's caches, data sets and archives."""
    home = tmp_path_factory.mktemp("home")
    # The kernels take long to compile: once for all processes of the session.
    kernels = shared_folder / "kernels"
    kernels.mkdir(mode=0o700, exist_ok=True)
    (home / "jaxcnn").mkdir()
    (home / "jaxcnn" / "kernels").symlink_to(kernels)
    monkeypatch.delenv("JAXCNN_ARCHIVE_DIR", raising=False)
    monkeypatch.setenv("JAXCNN_KERNELS", "auto")  # and what a test sets is undone
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(home / "jaxcnn"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(home / "tensorflow_datasets"))


@pytest.fixture(autouse=True)
def _strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes mixing dtypes an error, but where other libraries do it."""
    loose = request.node.get_closest_marker("loose_promotion")
    with jax.numpy_dtype_promotion("standard" if loose else "strict"):
        yield


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data; its tests are skipped where it is not."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real data is not there ({REAL_DATA}); set JAXCNN_TEST_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def synthetic_cache(shared_folder: Path) -> str:
    """A cache folder with the synthetic data set for MNIST, which takes long to generate."""
    folder = str(shared_folder / "synthetic")
    load_data("mnist", source="synthetic", cache_dir=folder)
    return folder


@pytest.fixture(scope="session")
def tiny_mnist() -> Dataset:
    """330 training and 70 test images of MNIST's shape."""
    shape = (28, 28, 1)
    train, test = striped_split(shape, 330, 0), striped_split(shape, 70, 1)
    return Dataset("mnist", "tiny", train, test, tuple("0123456789"))


@pytest.fixture(scope="session")
def tiny_cifar10() -> Dataset:
    """90 training and 30 test images of CIFAR-10's shape."""
    shape = (32, 32, 3)
    train, test = striped_split(shape, 90, 0), striped_split(shape, 30, 1)
    return Dataset("cifar10", "tiny", train, test, CIFAR_NAMES)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Saves small images in place of the figures; returns the folders given."""
    from PIL import Image

    from jaxcnn.report import page

    folders: list[Path] = []

    def save(_: object, folder: Path) -> dict[str, Path]:
        folders.append(folder)
        paths = {name: folder / f"{name}.png" for row in page._ROWS for name, _ in row}
        for path in paths.values():
            Image.new("L", (130, 260)).save(path)
        return paths

    monkeypatch.setattr("jaxcnn.report.figures.plot_run", lambda *_: {})
    monkeypatch.setattr("jaxcnn.display.drawing.save", save)
    return folders


@pytest.fixture
def unpredicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces predictions: one class after the other."""
    from jaxcnn.train.trained import Trained

    rows = np.eye(10, dtype=np.float32)
    monkeypatch.setattr(
        Trained, "probabilities", lambda _, images: rows[np.arange(len(images)) % 10]
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a loopback server offers it."""
    folder = tmp_path / "archives"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            pass  # a client that hangs up early is what some tests are about

    handler = partial(Handler, directory=str(folder))
    with Server(("127.0.0.1", 0), handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


@pytest.fixture(params=["mnist", "cifar10"])
def name(request: pytest.FixtureRequest) -> str:
    """The name of each data set in turn."""
    return request.param


@pytest.fixture
def official(
    name: str,
    server: tuple[Path, str],
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> Official:
    """Small official archives that the builders take for the real ones."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    from jaxcnn.data import builders, decoding

    folder, url = server
    dataset = tiny_mnist if "mnist" in name else tiny_cifar10
    splits = {"train": dataset.train, "test": dataset.test}
    write_official(folder, name, splits)
    builder = builders.BUILDERS[name.partition("/")[0]]
    archives = [archive(url, folder / old.rsplit("/", 1)[-1]) for old in builder.urls]
    infos = {a.url: UrlInfo(a.size, a.sha256, a.filename) for a in archives}
    monkeypatch.setattr(builder, "urls", tuple(infos))
    monkeypatch.setattr(builder, "url_infos", infos)
    known = {
        split: (len(one), decoding.split_digest(one.images, one.labels))
        for split, one in splits.items()
    }
    if name in decoding.OFFICIAL:
        monkeypatch.setitem(decoding.OFFICIAL, name, known)
    return Official(folder, url, splits, archives)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium, for slow tests of pages."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'jaxcnn[slow]'"
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: install chromium or google-chrome")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()
