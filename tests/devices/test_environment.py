import importlib.metadata
import platform
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import jaxcnn
from jaxcnn.devices import environment


def test_versions_are_those_installed() -> None:
    found = environment.versions()
    assert found.pop("python") == platform.python_version()
    assert found.pop("jaxcnn") == jaxcnn.__version__
    decisive = ("jax", "jaxlib", "flax", "optax", "safetensors", "numpy")
    assert found.keys() == {*decisive, "tensorflow-datasets"}
    for package, version in found.items():
        assert version == importlib.metadata.version(package)


def test_a_package_that_is_not_there_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "safetensors":
            raise importlib.metadata.PackageNotFoundError(package)
        return f"{package}'s"

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = environment.versions()
    assert "safetensors" not in found
    assert (found["jax"], found["numpy"]) == ("jax's", "numpy's")


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("processor\t: 0\nmodel name\t: A B: C\nmodel name\t: D\n", "A B: C"),
        ("processor\t: 0\n", "risc"),  # as on some ARM machines
        (None, "risc"),  # as on macOS
    ],
)
def test_a_cpu(
    said: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if said is not None:
        file.write_text(said)
    monkeypatch.setattr("jaxcnn.devices.environment.Path", {"/proc/cpuinfo": file}.__getitem__)
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "risc")
    assert environment.device() == f"cpu ({name}, 3 cores)"


def test_a_processor_is_known_by_its_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr("jaxcnn.devices.environment.Path", {"/proc/cpuinfo": file}.__getitem__)
    named = []
    for said in (
        "model name : A\nflags : sse avx\n",
        "model name : A\nflags : avx sse\nflags : none\n",
        "model name : A\nflags : sse\n",
        "model name : B\nflags : sse avx\n",
        "Features : neon\n",
        "Features : sve\n",
        "",
    ):
        file.write_text(said)
        named.append(environment.processor())
    assert named[0] == named[1]
    assert len(set(named)) == 6
    assert all(name.startswith(f"{platform.machine()}-") and "/" not in name for name in named)


def test_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(platform="gpu", device_kind="Some GPU")
    monkeypatch.setattr(jax, "devices", lambda: [device, device])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert environment.device() == "gpu (Some GPU, 2 devices)"


def test_the_machine_in_one_line() -> None:
    line = environment.machine()
    assert "\n" not in line
    assert line.startswith(f"{environment.device()}, python {platform.python_version()}, jaxcnn ")
    assert f", jax {jax.__version__}," in f"{line},"
