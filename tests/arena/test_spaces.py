import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.arena.spaces import (
    RATE,
    Range,
    catalogued,
    check_packaged,
    find_space,
    hyperparameters,
    load_space,
    packaged,
)
from jaxcnn.arena.track import find_track
from jaxcnn.errors import UserError
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.train.member import Member
from jaxcnn.train.setup import check_recipe
from tests.conftest import REPOSITORY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

TRACK = find_track("mnist-sprint")
CATALOG = REPOSITORY / "jaxcnn/arena/spaces.toml"


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("name", catalogued())
def test_every_usable_optimizer_has_a_space_with_its_default(name: str) -> None:
    recipe = TRACK.for_optimizer(name)
    space = find_space(recipe)
    assert space.reference
    assert space.source
    assert next(iter(space.ranges)) == RATE
    assert 1 <= len(space.ranges) <= 3
    assert space.default.keys() == space.ranges.keys()
    for one, ends in space.ranges.items():
        assert ends.low <= space.default[one] <= ends.high, one
    assert space.default[RATE] == recipe.learning_rate
    assert space.ranges[RATE].position(recipe.learning_rate) == pytest.approx(0.5)
    assert space.ranges[RATE].high == pytest.approx(10 * recipe.learning_rate)
    check_recipe(recipe)


def test_the_defaults_are_those_that_an_optimizer_has_without_a_space() -> None:
    sgd, adan, signum, rho = (
        find_space(TRACK.for_optimizer(name)).default for name in ("sgd", "adan", "signum", "sam")
    )
    assert sgd == {RATE: 0.05, "one_minus_momentum": 0.1}
    assert adan == {RATE: 2e-3, "weight_decay": 0.02}
    assert signum["one_minus_beta"] == 0.1
    assert rho["rho"] == 0.05
    assert find_space(TRACK.for_optimizer("ademamix")).default["alpha"] == 2.0


@pytest.mark.parametrize("name", packaged())
def test_the_space_of_another_package_s_optimizer_follows_the_same_rules(
    name: str, tmp_path: Path
) -> None:
    space = find_space(TRACK.for_optimizer(name))
    assert space.reference
    assert space.source
    assert next(iter(space.ranges)) == RATE
    for one, ends in space.ranges.items():
        assert ends.low <= space.default[one] <= ends.high, one
    assert space.ranges[RATE].position(space.default[RATE]) == pytest.approx(0.5)
    assert space.ranges[RATE].high == pytest.approx(10 * space.default[RATE])
    # As a file of a user's it is sound too.
    head, _, table = CATALOG.read_text().partition(f'["{name}"]\n')
    assert head
    (tmp_path / "own.toml").write_text(table.partition("\n[")[0])
    assert load_space(tmp_path / "own.toml") == space


def test_the_optimizers_of_other_packages_are_none_of_the_catalog() -> None:
    assert "rollfast:kron" in packaged()
    assert set(packaged()).isdisjoint(catalogued())
    content = tomllib.loads(CATALOG.read_text())
    assert set(content) == {"source", *catalogued(), *packaged()}


def test_another_package_is_looked_for_and_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--optimizers a\.b:c: .* give it by jaxcnn arena add"):
        check_packaged("a.b:c")
    found: list[Any] = [None, "a specification"]
    monkeypatch.setattr("jaxcnn.arena.spaces.find_spec", lambda name: found.pop(0))
    monkeypatch.setitem(sys.modules, "rollfast", None)  # its import fails
    with pytest.raises(UserError, match=r"rollfast:kron needs the package rollfast: pip install"):
        check_packaged("rollfast:kron")
    check_packaged("rollfast:kron")
    assert not found


def test_what_is_one_minus_an_argument_becomes_the_argument() -> None:
    found = hyperparameters({RATE: 0.1, "one_minus_b1": 0.25, "weight_decay": 0.5})
    assert found == {RATE: 0.1, "b1": 0.75, "weight_decay": 0.5}


def test_a_range_is_uniform_in_its_scale() -> None:
    log, linear = Range(1e-4, 1e-2), Range(2.0, 4.0, "linear")
    assert [log.at(at) for at in (0, 0.5, 1)] == [1e-4, 1e-3, 1e-2]
    assert [linear.at(at) for at in (0, 0.5, 1)] == [2, 3, 4]
    for one in (log, linear):
        assert np.allclose([one.position(one.at(at)) for at in (0.1, 0.7)], [0.1, 0.7], atol=1e-5)
    low, high = log.extension("low"), log.extension("high")
    assert np.allclose([low.low, low.high, high.low, high.high], [1e-5, 1e-4, 1e-2, 1e-1])
    low, high = linear.extension("low"), linear.extension("high")
    assert [low.low, low.high, high.low, high.high] == [1, 2, 4, 5]


SOUND = """
reference = "here"
source = "a guess"
[space]
learning_rate = [1e-3, 1.0, "log"]
one_minus_momentum = [0.1, 0.5, "linear"]
"""


def test_a_space_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(SOUND)
    space = load_space(file)
    assert (space.reference, space.source) == ("here", "a guess")
    assert space.ranges["one_minus_momentum"] == Range(0.1, 0.5, "linear")
    assert space.default == {RATE: 0.0316228, "one_minus_momentum": 0.3}
    file.write_text(SOUND + "[default]\none_minus_momentum = 0.2\nlearning_rate = 1\n")
    assert list(load_space(file).default.items()) == [(RATE, 1), ("one_minus_momentum", 0.2)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate", "rate", r"give it a table \[space\] with learning_rate"),
        ("[space]", "[spaces]", "it has 'spaces', and takes"),
        ("[space]", "b = [", "is no TOML file"),
        ('"log"', '"logarithmic"', "learning_rate takes"),
        ("1e-3, 1.0", "1.0, 1e-3", "learning_rate takes"),
        ("1e-3, 1.0", "0, 1.0", "learning_rate takes"),
        ("1e-3, 1.0", "1e-3, inf", "learning_rate takes"),
        ("one_minus_momentum", "'a b'", "'a b' is no name"),
        ('"here"', "3", "its reference is not a line of text"),
        ('"linear"]', '"linear"]\nb1 = [0.1, 1, "log"]\nb2 = [0.1, 1, "log"]', "at most 2 more"),
        ('"linear"]', '"linear"]\n[default]\nb1 = 0.1', "has other names than its"),
        ('"linear"]', '"linear"]\n[default]\nlearning_rate=1\none_minus_momentum="a"', "numbers"),
    ],
)
def test_a_mistake_in_a_space_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    file = tmp_path / "own.toml"
    assert old in SOUND
    file.write_text(SOUND.replace(old, new))
    with pytest.raises(UserError, match=said) as caught:
        load_space(file)
    assert re.match(re.escape(str(file)), str(caught.value))


def test_a_missing_space_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give the file of a space"):
        load_space(tmp_path / "none.toml")
    own = TRACK.for_optimizer("my_module:factory")
    with pytest.raises(UserError, match="no search space of my_module:factory"):
        find_space(own)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("name", [*catalogued(), *packaged()])
def test_every_hyperparameter_of_a_space_can_differ_by_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of an ensemble is traced, not compiled."""
    import jax

    if name in packaged():
        pytest.importorskip(name.partition(":")[0], reason="pip install 'jaxcnn[arena]'")
        monkeypatch.setattr(optimizer_defaults, "_trusted", {name})

    from jaxcnn.devices.mesh import Placement
    from jaxcnn.train import steps
    from tests.conformance import SHAPE, SmallCNN

    recipe = TRACK.for_optimizer(name).replace(batch_size=32)
    member = Member(recipe, SHAPE, 320, SmallCNN(), None, Placement(None))
    images = jax.ShapeDtypeStruct((320, *SHAPE), np.uint8)
    data = images, jax.ShapeDtypeStruct((320,), np.int32)
    values = {
        one: np.float32(value) for one, value in hyperparameters(find_space(recipe).default).items()
    }

    def step(seed: jax.Array, values: dict[str, jax.Array], data: tuple[jax.Array, ...]) -> object:
        records = [steps.zero_train_metrics({})]
        bounds = np.int32(0), np.int32(1)
        state = member.init(seed, values)
        return member.train_full(state, records, seed, values, np.int32(1), bounds, data)

    # Other packages broadcast without saying so.
    with jax.numpy_rank_promotion("allow" if name in packaged() else "raise"):
        jax.eval_shape(step, np.uint32(0), values, data)
