from pathlib import Path

import pytest

import jaxcnn
from jaxcnn.arena import source


def test_the_digest_is_of_the_code_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(jaxcnn.__file__).parent
    for pattern in source._FILES:
        assert list(package.glob(pattern)), pattern
    monkeypatch.setattr(jaxcnn, "__file__", str(tmp_path / "__init__.py"))
    found = set()
    for name, text in (
        ("train/steps.py", "a"),
        ("train/steps.py", "b"),
        ("train/state.py", "b"),
        ("optim/soap.py", "c"),
        ("networks/cpu/native/kernels.cpp", "d"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        found.add(source.source_digest.__wrapped__())
    assert len(found) == 5
    (tmp_path / "train/steps.py").write_bytes(b"b\r\n")
    one = source.source_digest.__wrapped__()
    (tmp_path / "train/steps.py").write_bytes(b"b\n")
    assert source.source_digest.__wrapped__() == one
    (tmp_path / "report.py").write_text("another part")
    assert source.source_digest.__wrapped__() == one
