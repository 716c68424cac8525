import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.arena.files import differing, load_entries, load_entry, write_entry
from jaxcnn.errors import UserError
from jaxcnn.study.specification import with_digest

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

SGD = "mnist-sprint/sgd.json"


def forge(path: Path, **changes: Any) -> None:
    """Changes fields of an entry, and its digest with them."""
    write_entry(path, load_entry(path) | changes)


def test_an_entry_is_read_as_it_was_written(computed: Path, tmp_path: Path) -> None:
    entry = load_entry(computed / SGD)
    write_entry(tmp_path / "again.json", entry)
    assert (tmp_path / "again.json").read_bytes() == (computed / SGD).read_bytes()
    assert json.loads((computed / SGD).read_text()) == with_digest(entry)
    assert list(load_entries(computed)) == [Path("mnist-sprint/adamw.json"), Path(SGD)]


@pytest.mark.parametrize(
    ("old", "new"),
    [('"protocol": 1', '"protocol": 2'), ('"correct": ', '"correct": 1'), ("}\n", "")],
)
def test_an_altered_entry_is_refused(old: str, new: str, computed: Path, tmp_path: Path) -> None:
    text = (computed / SGD).read_text()
    assert old in text
    (tmp_path / "sgd.json").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=r"sgd.json is no entry of the arena, or was altered"):
        load_entry(tmp_path / "sgd.json")
    with pytest.raises(UserError, match="does not exist: give the file of an entry"):
        load_entry(tmp_path / "lion.json")


def test_an_entry_of_another_form_is_refused(computed: Path, tmp_path: Path) -> None:
    entry = load_entry(computed / SGD)
    path = tmp_path / "sgd.json"
    run = entry["final"][0]
    for changes in (
        {"best": 99},
        {"best": "0"},
        {"trials": []},
        {"final": [run | {"correct": 71}]},
        {"final": [run | {"progress": ["a"]}]},
        {"settings": entry["settings"] | {"trials": 10**12}},
        {"track": "a\nb"},
    ):
        shutil.copy(computed / SGD, path)
        write_entry(path, entry | changes)
        with pytest.raises(UserError, match="is no entry of the arena"):
            load_entry(path)


def test_differences_are_named(computed: Path) -> None:
    sgd, adamw = load_entries(computed).values()
    assert differing(sgd, sgd) == []
    other = sgd | {"code": "x", "settings": sgd["settings"] | {"epochs": 9, "new": 1}}
    assert differing(sgd, other) == ["code", "epochs", "new"]
    assert "optimizer" in differing(sgd, adamw)
