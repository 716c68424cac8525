import json
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.errors import UserError
from jaxcnn.study.specification import (
    SPECIFICATION,
    differing_settings,
    load_specification,
    load_study,
    with_digest,
    without_digest,
    write_specification,
)
from tests.study.conftest import STUDY


def test_the_file_is_plain_json(scored: Path) -> None:
    assert load_study(scored) == STUDY
    specification = json.loads((scored / SPECIFICATION).read_text())
    assert specification["dataset"] == "mnist"
    assert specification["command"] == "do it"
    assert specification["recipe"]["adamw"]["weight_decay"] == 0.02
    assert specification["learning_rates"] == {"sgd": [0.02, 1e30], "adamw": [0.004]}
    digest = specification.pop("digest")
    assert load_specification(scored) == specification
    assert with_digest(specification)["digest"] == digest


def test_it_is_read_as_it_was_written(scored: Path, tmp_path: Path) -> None:
    specification = load_specification(scored)
    write_specification(tmp_path, specification)
    assert (tmp_path / SPECIFICATION).read_bytes() == (scored / SPECIFICATION).read_bytes()
    (tmp_path / SPECIFICATION).write_text(json.dumps(specification))  # a digest is not needed
    assert load_specification(tmp_path) == specification


@pytest.mark.parametrize(
    "content", ["", "[", "3", '{"machines": 3}', 100_000 * "[", 10_000 * '{"a":', '{"digest": 1}']
)
def test_damage_is_named(content: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / SPECIFICATION).write_text(content)
    with pytest.raises(UserError, match=r"study.json cannot be read, so .* remove the folder"):
        load_specification(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": None},
        {"base_recipe": 3},
        {"base_recipe": {"no": "such"}},
        {"recipe": []},
        {"learning_rates": {"sgd": "0.1"}},
        {"seeds": 1.5},
        {"target": "high"},
    ],
)
def test_a_study_with_other_values_is_none(
    change: dict[str, Any], scored: Path, tmp_path: Path
) -> None:
    write_specification(tmp_path, load_specification(scored) | change)
    with pytest.raises(UserError, match=r"study.json cannot be read"):
        load_study(tmp_path)


def test_differing_settings() -> None:
    one = {"seeds": 1, "target": 0.5, "machines": ["a"], "command": "one"}
    other = {"seeds": 1, "target": 0.6, "machines": ["b"], "command": "two", "shard": 1}
    assert differing_settings(one, one | {"machines": ["b"], "command": "two"}) == []
    assert differing_settings(one, other) == ["target", "shard"]


def test_a_digest_notices_every_change() -> None:
    fields = with_digest({"a": 1, "b": [2]})
    assert without_digest(fields) == {"a": 1, "b": [2]}
    for changed in ({**fields, "a": 2}, {**fields, "c": 3}, {**fields, "digest": 0}, {"a": 1}):
        with pytest.raises(ValueError, match="altered"):
            without_digest(changed)
